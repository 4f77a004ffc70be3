//! `openssl s_client`, and sessions that it takes from one handshake to another.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::mqtt::Connect;
use super::wait::SOON;

/// A broker's CONNACK in what `openssl s_client` prints.
pub const CONNACK: &str = "\u{20}\u{2}\0\0";

/// Runs `openssl s_client` against a port of 127.0.0.1, sends `input` once it has connected, and
/// ends it when its output contains `until`, or it ends itself. The output is both its streams.
pub fn s_client(port: u16, args: &[&str], input: &[u8], until: &str) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}")])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl (Debian: apt-get install openssl)");
    let output = Arc::new(Mutex::new(Vec::new()));
    let streams: [Box<dyn Read + Send>; 2] = [
        Box::new(child.stdout.take().expect("piped")),
        Box::new(child.stderr.take().expect("piped")),
    ];
    let readers: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            let output = Arc::clone(&output);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    output
                        .lock()
                        .expect("output")
                        .extend_from_slice(&buffer[..count]);
                }
            })
        })
        .collect();
    let mut stdin = child.stdin.take();
    let text = || String::from_utf8_lossy(&output.lock().expect("output")).into_owned();
    if let Some(stdin) = &mut stdin {
        let _ = stdin.write_all(input).and_then(|()| stdin.flush());
    }
    let start = Instant::now();
    while !text().contains(until) && child.try_wait().expect("wait").is_none() {
        assert!(
            start.elapsed() < SOON,
            "openssl s_client never printed {until:?}: {}",
            text()
        );
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    drop(stdin);
    while child.try_wait().expect("wait").is_none() {
        if start.elapsed() > SOON {
            let _ = child.kill();
        }
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    for reader in readers {
        reader.join().expect("reader");
    }
    text()
}

/// Gets a session under one name and offers it under the same or another one, as a device that
/// comes back would, or a thief.
#[derive(Clone, Copy)]
pub struct Visitor<'a> {
    /// Where the proxy listens.
    pub port: u16,
    /// Where the session is kept meanwhile.
    pub folder: &'a Path,
    /// The argument for a TLS version, such as `-tls1_3`.
    pub version: &'a str,
}

impl Visitor<'_> {
    /// Takes a new session, with these more arguments.
    ///
    /// # Panics
    /// When there is none to be had.
    pub fn get_session(&self, name: &str, identity: &[&str]) {
        let file = self.folder.join("session.pem");
        let _ = std::fs::remove_file(&file);
        let file = file.to_str().expect("text").to_owned();
        let args = [
            &[self.version, "-servername", name, "-sess_out", &file][..],
            identity,
        ]
        .concat();
        // The session of TLS 1.3 comes after the handshake and before CONNACK.
        let said = s_client(self.port, &args, &Connect::v311("visitor").build(), CONNACK);
        assert!(said.contains("New, TLSv1."), "{said}");
        assert!(Path::new(&file).exists(), "no session: {said}");
    }

    /// Offers that session and gives everything that was said.
    pub fn use_session(&self, name: &str) -> String {
        let file = self.folder.join("session.pem");
        let file = file.to_str().expect("text");
        let args = [self.version, "-servername", name, "-sess_in", file];
        s_client(self.port, &args, &Connect::v311("visitor").build(), CONNACK)
    }
}

/// Whether the server took the session.
pub fn is_resumed(said: &str) -> bool {
    said.contains("Reused, TLSv1.")
}
