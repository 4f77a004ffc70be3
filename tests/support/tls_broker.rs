//! A broker that speaks TLS.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::mpsc::Sender;

use openssl::pkey::PKey;
use openssl::ssl::{
    NameType, Ssl, SslContext, SslContextBuilder, SslMethod, SslStream, SslVerifyMode,
};
use openssl::x509::X509;

use super::broker::{Broker, Conn};
use super::mqtt::ACCEPTED;
use super::tls::Identity;

/// What a TLS broker saw of a connection: the server name, and whether it was a resumed session.
pub type Hello = (Option<String>, bool);

/// A broker that speaks TLS: it accepts one MQTT client a connection, and echoes. Its context is
/// changed first.
pub fn tls_broker(
    identity: &Identity,
    seen: Sender<Hello>,
    change: impl FnOnce(&mut SslContextBuilder),
) -> Broker {
    let mut builder = SslContext::builder(SslMethod::tls_server()).unwrap();
    let chain = X509::stack_from_pem(identity.cert.as_bytes()).unwrap();
    builder.set_certificate(&chain[0]).unwrap();
    let key = PKey::private_key_from_pem(identity.key.as_bytes()).unwrap();
    builder.set_private_key(&key).unwrap();
    builder.set_session_id_context(b"broker").unwrap();
    builder.set_verify(SslVerifyMode::NONE);
    change(&mut builder);
    let context = builder.build();
    let seen = Mutex::new(seen);
    Broker::scripted(move |conn: Conn| {
        let ssl = Ssl::new(&context).unwrap();
        let mut stream = match SslStream::new(ssl, conn.stream).map(|mut s| s.accept().map(|()| s))
        {
            Ok(Ok(stream)) => stream,
            _ => return,
        };
        let name = stream
            .ssl()
            .servername(NameType::HOST_NAME)
            .map(str::to_owned);
        let _ = seen
            .lock()
            .unwrap()
            .send((name, stream.ssl().session_reused()));
        let mut buffer = [0; 4096];
        if matches!(stream.read(&mut buffer), Ok(1..)) {
            let _ = stream.write_all(ACCEPTED);
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                let _ = stream.write_all(&buffer[..count]);
            }
        }
    })
}
