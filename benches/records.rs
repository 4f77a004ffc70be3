//! What records of an established TLS connection cost: by ourselves, and by OpenSSL's session.
//!
//! One small message and one full record each way, for each cipher; what it costs to let go of
//! OpenSSL's session, once a connection.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use criterion::{Bencher, Criterion, criterion_group, criterion_main};
use mqtt_proxy::tls::records::keylog;
use mqtt_proxy::tls::session::{Session, Transport};
use mqtt_proxy::tls::staging::{Shelf, Staging};
use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::ssl::{Ssl, SslContext, SslContextBuilder, SslMethod, SslStream, SslVersion};
use openssl::x509::X509;

const SUITES: [(SslVersion, &str); 4] = [
    (SslVersion::TLS1_3, "TLS_AES_128_GCM_SHA256"),
    (SslVersion::TLS1_3, "TLS_AES_256_GCM_SHA384"),
    (SslVersion::TLS1_3, "TLS_CHACHA20_POLY1305_SHA256"),
    (SslVersion::TLS1_2, "ECDHE-ECDSA-AES128-GCM-SHA256"),
];
/// As the relay threads have it.
const STAGED: usize = 64 * 1024;

/// Bytes on their way in one direction.
#[derive(Debug, Default)]
struct Bytes {
    bytes: Vec<u8>,
    read: usize,
}

impl Bytes {
    fn take(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = &self.bytes[self.read..];
        let count = rest.len().min(buffer.len());
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        buffer[..count].copy_from_slice(&rest[..count]);
        self.read += count;
        Ok(count)
    }

    fn put(&mut self, more: &mut Vec<u8>) {
        (self.read, self.bytes) = (0, std::mem::take(more));
    }
}

/// What OpenSSL's client has in place of a socket.
#[derive(Debug, Default)]
struct Memory {
    input: Bytes,
    output: Vec<u8>,
}

impl Read for Memory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.take(buffer)
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the session has in place of a socket; it receives so many bytes at most at a time.
#[derive(Debug, Default)]
struct Socket {
    input: Bytes,
    output: Vec<u8>,
    at_once: Option<usize>,
}

impl Transport for Socket {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = self.at_once.unwrap_or(buffer.len()).min(buffer.len());
        self.input.take(&mut buffer[..size])
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }
}

struct Pair {
    session: Session,
    socket: Socket,
    client: SslStream<Memory>,
    shelf: Shelf,
}

fn server((version, suite): (SslVersion, &str), own: bool) -> SslContext {
    let made = || {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
        let mut certificate = X509::builder()?;
        certificate.set_pubkey(&key)?;
        certificate.set_not_before(&*Asn1Time::days_from_now(0)?)?;
        certificate.set_not_after(&*Asn1Time::days_from_now(1)?)?;
        certificate.sign(&key, MessageDigest::sha256())?;
        let mut builder = SslContext::builder(SslMethod::tls_server())?;
        only(&mut builder, version, suite);
        builder.set_certificate(&certificate.build())?;
        builder.set_private_key(&key)?;
        if own {
            keylog::use_own_records(&mut builder)?;
        }
        Ok::<_, openssl::error::ErrorStack>(builder.build())
    };
    made().expect("a context")
}

fn only(builder: &mut SslContextBuilder, version: SslVersion, suite: &str) {
    builder
        .set_min_proto_version(Some(version))
        .and_then(|()| builder.set_max_proto_version(Some(version)))
        .and_then(|()| match version {
            SslVersion::TLS1_3 => builder.set_ciphersuites(suite),
            _ => builder.set_cipher_list(suite),
        })
        .expect("a suite");
}

fn client((version, suite): (SslVersion, &str)) -> SslContext {
    let mut builder = SslContext::builder(SslMethod::tls_client()).expect("a context");
    only(&mut builder, version, suite);
    builder.build()
}

impl Pair {
    /// An established connection that is not settled.
    fn new(server: &SslContext, client: &SslContext) -> Self {
        let mut ssl = Ssl::new(client).expect("a client");
        ssl.set_connect_state();
        let server = Ssl::new(server).expect("a server");
        let mut pair = Pair {
            session: Session::accept(server, Vec::new()).expect("a server"),
            socket: Socket::default(),
            client: SslStream::new(ssl, Memory::default()).expect("a client"),
            shelf: Shelf::default(),
        };
        pair.shelf.set(Some(Staging::new(STAGED)));
        let (mut done, mut shaken) = (false, false);
        while !(done && shaken) {
            done = done || pair.client.do_handshake().is_ok();
            pair.carry_up();
            shaken = shaken
                || pair
                    .session
                    .handshake(&pair.shelf, &mut pair.socket)
                    .expect("a handshake");
            pair.carry_down();
        }
        // Tickets.
        let _ = pair.client.read(&mut [0]);
        pair
    }

    fn carry_up(&mut self) {
        self.socket.input.put(&mut self.client.get_mut().output);
    }

    fn carry_down(&mut self) {
        let memory = self.client.get_mut();
        memory.input.put(&mut self.socket.output);
    }

    /// How long it takes to read so many messages of this size, each a record.
    fn reads(&mut self, size: usize, count: u64) -> Duration {
        let mut buffer = vec![0; STAGED];
        let message = vec![7; size];
        let mut left = count;
        let mut elapsed = Duration::ZERO;
        while left > 0 {
            let batch = left.min(500);
            for _ in 0..batch {
                self.client.write_all(&message).expect("a message");
            }
            let record = self.client.get_ref().output.len() / batch as usize;
            // Small messages come one by one.
            self.socket.at_once = (size < 1024).then_some(record);
            self.carry_up();
            let started = Instant::now();
            let mut read = 0;
            while read < size * batch as usize {
                read += self
                    .session
                    .read(&self.shelf, &mut self.socket, &mut buffer)
                    .expect("a message");
            }
            elapsed += started.elapsed();
            left -= batch;
        }
        elapsed
    }

    fn writes(&mut self, size: usize, bencher: &mut Bencher) {
        let message = vec![7; size];
        bencher.iter(|| {
            self.socket.output.clear();
            let written = self
                .session
                .write(&self.shelf, &mut self.socket, &message)
                .expect("a message");
            assert_eq!(written, size);
        });
    }
}

fn benches(criterion: &mut Criterion) {
    for suite in SUITES {
        let mut group = criterion.benchmark_group(suite.1);
        group
            .sample_size(20)
            .measurement_time(Duration::from_secs(2));
        let client = client(suite);
        let owners = [
            ("own", server(suite, true)),
            ("openssl", server(suite, false)),
        ];
        for (owner, server) in &owners {
            let mut pair = Pair::new(server, &client);
            pair.session.settle();
            assert_eq!(pair.session.ssl().is_none(), *owner == "own");
            for (name, size) in [("64_bytes", 64), ("16_kib", 16 * 1024)] {
                group.bench_function(format!("read_{name}/{owner}"), |bencher| {
                    bencher.iter_custom(|count| pair.reads(size, count));
                });
                group.bench_function(format!("write_{name}/{owner}"), |bencher| {
                    pair.writes(size, bencher);
                });
            }
        }
        group.bench_function("settle", |bencher| {
            bencher.iter_custom(|count| {
                let mut elapsed = Duration::ZERO;
                for _ in 0..count {
                    let mut pair = Pair::new(&owners[0].1, &client);
                    let started = Instant::now();
                    pair.session.settle();
                    elapsed += started.elapsed();
                }
                elapsed
            });
        });
        group.finish();
    }
}

criterion_group!(all, benches);
criterion_main!(all);
