//! What one side of a connection does once MQTT's greeting is over, and what it must see.

use std::io;
use std::time::Duration;

use openssl::ssl::SslSession;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_openssl::SslStream;

use super::plan::{End, Pace, Plan, Side};
use crate::random::{Pattern, Random};

/// The largest piece that is written at once.
const PIECE: u64 = 64 * 1024;

/// What must not happen.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("a wrong byte at or after {0}")]
    WrongByte(u64),
    #[error("the stream ended at {at} of {all}")]
    TooShort { at: u64, all: u64 },
    #[error("{0} bytes too many")]
    TooLong(usize),
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    #[error("{0}")]
    Other(String),
}

/// A socket, plain or with TLS.
pub trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// What is below.
    fn tcp(&self) -> &TcpStream;
    /// The TLS session, to be resumed later.
    fn session(&self) -> Option<SslSession> {
        None
    }
}

impl Socket for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Socket for SslStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref()
    }

    fn session(&self) -> Option<SslSession> {
        // A copy, which no end of this connection can spoil.
        let encoded = self.ssl().session()?.to_der().ok()?;
        SslSession::from_der(&encoded).ok()
    }
}

/// Does what the plan says for `side`, to the end of the connection; how many bytes it received.
pub async fn talk<S: Socket>(
    stream: S,
    side: Side,
    plan: &Plan,
    stop: watch::Receiver<bool>,
) -> Result<u64, Fault> {
    if matches!(plan.end, End::Reset(resets, _) if resets == side) {
        let socket = socket2::SockRef::from(stream.tcp());
        let reset = socket.set_linger(Some(Duration::ZERO));
        reset.map_err(|error| Fault::Io("linger", error))?;
    }
    let (reader, writer) = split(stream);
    let (all, seed) = plan.sends(side);
    let mut sender = Sender {
        writer,
        pattern: Pattern::new(seed),
        random: Random::new(!seed),
    };
    let (expected, seed) = match plan.end {
        End::Echo => plan.sends(side),
        _ => plan.sends(side.other()),
    };
    let mut receiver = Receiver {
        reader,
        pattern: Pattern::new(seed),
        pace: plan.reads(side),
        buffer: Vec::new(),
        at: 0,
    };
    match plan.end {
        End::Close(closes) => {
            tokio::try_join!(sender.send(all), receiver.exactly(expected))?;
            if closes == side {
                sender.end().await?;
            } else {
                receiver.end().await?;
                // The other side is gone: this cannot reach anybody, and need not.
                let _ = sender.end().await;
            }
        }
        End::Half(first) if first == side => {
            let ending = async {
                sender.send(all).await?;
                sender.end().await
            };
            let receiving = async {
                receiver.exactly(expected).await?;
                receiver.end().await
            };
            tokio::try_join!(ending, receiving)?;
        }
        End::Half(_) => {
            receiver.exactly(expected).await?;
            receiver.end().await?;
            sender.send(all).await?;
            sender.end().await?;
        }
        End::Reset(resets, after) if resets == side => {
            let receiving = async {
                receiver.exactly(expected).await?;
                std::future::pending::<Result<(), Fault>>().await
            };
            tokio::select! {
                sent = sender.send(after) => sent?,
                Err(fault) = receiving => return Err(fault),
            }
        }
        End::Reset(_, after) => {
            let sending = async {
                // Fails when the reset comes in the middle.
                let _ = sender.send(all).await;
                Ok(())
            };
            tokio::try_join!(sending, receiver.prefix(after))?;
        }
        End::Echo if side == Side::Broker => echo(receiver.reader, sender.writer).await?,
        End::Echo => loiter(&mut sender, &mut receiver, plan, stop).await?,
    }
    Ok(receiver.at)
}

struct Sender<W> {
    writer: W,
    pattern: Pattern,
    random: Random,
}

impl<W: AsyncWrite + Unpin> Sender<W> {
    async fn send(&mut self, count: u64) -> Result<(), Fault> {
        let mut piece = Vec::new();
        let mut left = count;
        while left > 0 {
            let size = self.random.size(PIECE).clamp(1, left);
            piece.resize(size as usize, 0);
            self.pattern.fill(&mut piece);
            let sent = async {
                self.writer.write_all(&piece).await?;
                self.writer.flush().await
            };
            sent.await.map_err(|error| Fault::Io("send", error))?;
            left -= size;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), Fault> {
        let ended = self.writer.shutdown().await;
        ended.map_err(|error| Fault::Io("shutdown", error))
    }
}

struct Receiver<R> {
    reader: R,
    pattern: Pattern,
    pace: Pace,
    buffer: Vec<u8>,
    at: u64,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    /// Reads the next bytes and checks them; 0 at the end.
    async fn next(&mut self, most: u64) -> Result<usize, Fault> {
        if self.at > 0 && !self.pace.pause.is_zero() {
            tokio::time::sleep(self.pace.pause).await;
        }
        self.buffer
            .resize(most.min(self.pace.size as u64) as usize, 0);
        let read = self.reader.read(&mut self.buffer).await;
        let count = read.map_err(|error| Fault::Io("receive", error))?;
        if !self.pattern.matches(&self.buffer[..count]) {
            return Err(Fault::WrongByte(self.at));
        }
        self.at += count as u64;
        Ok(count)
    }

    async fn exactly(&mut self, count: u64) -> Result<(), Fault> {
        let all = self.at + count;
        while self.at < all {
            if self.next(all - self.at).await? == 0 {
                return Err(Fault::TooShort { at: self.at, all });
            }
        }
        Ok(())
    }

    /// Nothing more may come.
    async fn end(&mut self) -> Result<(), Fault> {
        let mut more = [0; 64];
        match self.reader.read(&mut more).await {
            Ok(0) => Ok(()),
            Ok(count) => Err(Fault::TooLong(count)),
            Err(error) => Err(Fault::Io("end", error)),
        }
    }

    /// Reads to an end of any kind, which comes after `most` bytes at the latest.
    async fn prefix(&mut self, most: u64) -> Result<(), Fault> {
        loop {
            match self.next(PIECE).await {
                Ok(0) | Err(Fault::Io(..)) => return Ok(()),
                Ok(_) if self.at > most => return Err(Fault::TooLong((self.at - most) as usize)),
                Ok(_) => {}
                Err(fault) => return Err(fault),
            }
        }
    }
}

/// The broker's side of a connection that idles.
async fn echo<R, W>(mut reader: R, mut writer: W) -> Result<(), Fault>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = [0; 1024];
    let repeat = async {
        loop {
            let count = reader.read(&mut buffer).await?;
            if count == 0 {
                return writer.shutdown().await;
            }
            writer.write_all(&buffer[..count]).await?;
        }
    };
    repeat.await.map_err(|error| Fault::Io("echo", error))
}

/// The client's side of it.
async fn loiter<R, W>(
    sender: &mut Sender<W>,
    receiver: &mut Receiver<R>,
    plan: &Plan,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Fault>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut random = Random::new(plan.number);
    loop {
        let count = 1 + random.below(256);
        tokio::try_join!(sender.send(count), receiver.exactly(count))?;
        let pause = Duration::from_millis(5_000 + random.below(40_000));
        // Also when whoever says it has gone.
        if let Ok(_stopped) = tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await {
            break;
        }
    }
    sender.end().await?;
    receiver.end().await
}
