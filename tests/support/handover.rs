//! The protocol of an upgrade, spoken by the test: as a new process that misbehaves, or from the
//! middle between two real processes, where each message can be held, dropped or followed by the
//! death of either side.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mqtt_proxy::upgrade::channel::{Channel, Frame};
pub use mqtt_proxy::upgrade::message::kind;
use mqtt_proxy::upgrade::socket_path;

use super::files::Files;
use super::wait::{SOON, wait_until};

/// Where processes with this runtime directory meet.
pub fn socket_in(runtime: &Path, files: &Files) -> PathBuf {
    let path = socket_path::of(&files.config_path()).expect("a path");
    runtime.join(path.file_name().expect("a name"))
}

/// The socket of a new process that waits.
pub struct Waiting {
    listener: UnixListener,
    path: PathBuf,
}

impl Waiting {
    /// Listens where the old process looks for it.
    pub fn at(path: PathBuf) -> Self {
        let (listener, _) = socket_path::listen(&path).expect("listen");
        listener.set_nonblocking(true).expect("non-blocking");
        Self { listener, path }
    }

    /// Waits for the old process.
    pub fn accept(self) -> Channel {
        over(self.accept_stream())
    }

    /// Waits for it, and does not speak as it expects.
    pub fn accept_stream(self) -> UnixStream {
        let (stream, _) = wait_until("the old process to come", SOON, || {
            self.listener.accept().ok()
        });
        let _ = std::fs::remove_file(&self.path);
        stream.set_nonblocking(false).expect("blocking");
        stream
    }
}

/// Connects to a new process that waits, or is about to.
pub fn connect(path: &Path) -> Channel {
    over(wait_until("the new process to listen", SOON, || {
        UnixStream::connect(path).ok()
    }))
}

fn over(stream: UnixStream) -> Channel {
    let channel = Channel::new(stream).expect("a channel");
    channel.set_limit(Duration::from_secs(30)).expect("a limit");
    channel
}

/// Receives a frame of this kind.
///
/// # Panics
/// When another one comes, or none.
pub fn expect(channel: &Channel, kind: u8) -> Frame {
    let frame = channel
        .receive()
        .unwrap_or_else(|e| panic!("instead of a message of kind {kind}: {e}"))
        .unwrap_or_else(|| panic!("the channel ended before a message of kind {kind}"));
    assert_eq!(
        frame.kind,
        kind,
        "{}",
        String::from_utf8_lossy(&frame.payload[..frame.payload.len().min(200)])
    );
    frame
}

/// Sends a frame on with its descriptors.
pub fn pass(frame: &Frame, to: &Channel) -> io::Result<()> {
    let descriptors: Vec<_> = frame.descriptors.iter().map(AsFd::as_fd).collect();
    to.send(frame.kind, &frame.payload, &descriptors)
}

/// Receives a frame of this kind and sends it on.
pub fn forward(from: &Channel, to: &Channel, kind: u8) -> Frame {
    let frame = expect(from, kind);
    pass(&frame, to).expect("the other side takes it");
    frame
}

/// Sends on every listener, and the state behind them.
pub fn forward_listeners(old: &Channel, new: &Channel) {
    loop {
        let frame = old.receive().expect("a message").expect("a message");
        pass(&frame, new).expect("the new side takes it");
        match frame.kind {
            kind::LISTENERS => {}
            kind::STATE => return,
            other => panic!("a message of kind {other} among the listeners"),
        }
    }
}

/// Sends on everything up to a COMMIT, which it returns and does not send on.
pub fn forward_pairs(old: &Channel, new: &Channel) -> Frame {
    loop {
        let frame = old.receive().expect("a message").expect("a message");
        match frame.kind {
            kind::PAIRS => pass(&frame, new).expect("the new side takes it"),
            kind::COMMIT => return frame,
            other => panic!("a message of kind {other} among the pairs"),
        }
    }
}

/// Takes over as a new process that says this of itself, and finds that no connection is handed to it.
pub fn take_nothing(old: &Channel, ready: &str) {
    expect(old, kind::HELLO);
    old.send(kind::READY, ready.as_bytes(), &[]).expect("READY");
    expect(old, kind::LISTENERS);
    expect(old, kind::STATE);
    old.send(kind::LISTENING, b"null", &[]).expect("LISTENING");
    let count: usize = serde_json::from_slice(&expect(old, kind::COMMIT).payload).expect("JSON");
    assert_eq!(count, 0);
    old.send(kind::COMMITTED, b"0", &[]).expect("COMMITTED");
}

/// Everything up to the moment when the new process has said that it accepts.
pub fn forward_to_listening(old: &Channel, new: &Channel) {
    forward(old, new, kind::HELLO);
    forward(new, old, kind::READY);
    forward_listeners(old, new);
    forward(new, old, kind::LISTENING);
}

/// Carries messages both ways until one side is gone, each as `change` makes it.
pub fn carry_all(
    old: Channel,
    new: Channel,
    change: impl Fn(Frame) -> Frame + Clone + Send + 'static,
) {
    let (old, new) = (Arc::new(old), Arc::new(new));
    let one_way = |from: Arc<Channel>, to: Arc<Channel>| {
        let change = change.clone();
        std::thread::spawn(move || {
            while let Ok(Some(frame)) = from.receive() {
                if pass(&change(frame), &to).is_err() {
                    break;
                }
            }
            to.end();
        })
    };
    let there = one_way(old.clone(), new.clone());
    let back = one_way(new, old);
    there.join().expect("there");
    back.join().expect("back");
}
