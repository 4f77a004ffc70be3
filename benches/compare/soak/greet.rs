//! The way into a connection: the client's CONNECT, the broker's CONNACK.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_openssl::SslStream;

use super::plan::{Kind, Plan, Side};
use super::shared::Soak;
use super::talk::{Fault, Socket, talk};
use crate::mqtt;

/// A connection that is not idle is over by then, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(120);
/// Clients use so many source addresses, 127.0.0.2 and up.
const SOURCES: u64 = 60;
/// TLS sessions that are kept to be resumed.
const SESSIONS: usize = 64;

/// One client, from connect to its end.
pub async fn visit(soak: Arc<Soak>, plan: Plan) {
    let visit = async {
        let tcp = connect(&soak, &plan).await;
        let tcp = tcp.map_err(|error| Fault::Io("connect", error))?;
        if !plan.tls {
            return converse(&soak, tcp, &plan).await;
        }
        let ssl = soak.ssl(plan.resume)?;
        let stream = SslStream::new(ssl, tcp).map_err(|error| Fault::Other(error.to_string()));
        let mut stream = stream?;
        let shaken = Pin::new(&mut stream).connect().await;
        shaken.map_err(|error| Fault::Other(format!("handshake: {error}")))?;
        soak.shaken(stream.ssl().session_reused());
        converse(&soak, stream, &plan).await
    };
    let received = match plan.kind {
        Kind::Crowd => visit.await,
        _ => in_time(visit).await,
    };
    soak.ended(Side::Client, &plan, received);
}

async fn in_time(work: impl Future<Output = Result<u64, Fault>>) -> Result<u64, Fault> {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| Err(Fault::Other("did not end in time".into())))
}

async fn connect(soak: &Soak, plan: &Plan) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let source = Ipv4Addr::new(127, 0, 0, (2 + plan.number % SOURCES) as u8);
    socket.bind(SocketAddr::from((source, 0)))?;
    let stream = socket.connect(soak.target(plan.tls)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn converse<S: Socket>(soak: &Soak, mut stream: S, plan: &Plan) -> Result<u64, Fault> {
    let connect = mqtt::connect(&plan.id());
    let piece = connect.len().div_ceil(plan.pieces as usize);
    let greeting = async {
        for (number, piece) in connect.chunks(piece).enumerate() {
            if number > 0 {
                tokio::time::sleep(Duration::from_millis(plan.number % 30)).await;
            }
            stream.write_all(piece).await?;
            stream.flush().await?;
        }
        let mut connack = [0; mqtt::ACCEPTED.len()];
        stream.read_exact(&mut connack).await?;
        Ok(connack)
    };
    let connack = greeting
        .await
        .map_err(|error| Fault::Io("CONNACK", error))?;
    if connack != mqtt::ACCEPTED {
        return Err(Fault::Other(format!("not our CONNACK: {connack:?}")));
    }
    if let Some(session) = stream.session() {
        soak.keep_session(session, SESSIONS);
    }
    talk(stream, Side::Client, plan, soak.stopped()).await
}

/// A broker.
pub async fn serve(soak: Arc<Soak>, listener: TcpListener, index: usize) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                soak.opened();
                tokio::spawn(answer(soak.clone(), stream, index));
            }
            Err(error) => {
                soak.fault(format!("broker {index} cannot accept: {error}"));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(soak: Arc<Soak>, mut stream: TcpStream, index: usize) {
    let greeting = async {
        // A fixed header of two bytes: no CONNECT here is longer than 127 bytes.
        let mut header = [0; 2];
        stream.read_exact(&mut header).await?;
        let mut body = vec![0; usize::from(header[1])];
        stream.read_exact(&mut body).await?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>((header[0], body))
    };
    let greeting = tokio::time::timeout(PATIENCE, greeting).await;
    let plan = match greeting {
        Ok(Ok((first, body))) if first == mqtt::CONNECT << 4 => {
            mqtt::client_id(&body).and_then(Plan::of)
        }
        _ => None,
    };
    let Some(plan) = plan else {
        soak.fault(format!(
            "broker {index}: a connection without a CONNECT of ours"
        ));
        soak.closed();
        return;
    };
    soak.arrived(index, &plan);
    let conversation = async {
        let greeted = stream.write_all(&mqtt::ACCEPTED).await;
        greeted.map_err(|error| Fault::Io("CONNACK", error))?;
        talk(stream, Side::Broker, &plan, soak.stopped()).await
    };
    let received = match plan.kind {
        Kind::Crowd => conversation.await,
        _ => in_time(conversation).await,
    };
    soak.ended(Side::Broker, &plan, received);
    soak.closed();
}
