//! Clients that keep coming while something happens to the proxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::client::Client;
use super::mqtt::{ACCEPTED, Connect};
use super::ports::local;
use super::wait::SOON;

/// Clients that connect one after the other without a pause, until the value is dropped.
pub struct Newcomers {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    thread: Option<JoinHandle<Option<String>>>,
}

impl Newcomers {
    /// Starts them.
    pub fn to(port: u16) -> Self {
        let (stop, served) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&served));
        let thread = std::thread::spawn(move || {
            for n in 0.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let stream = match std::net::TcpStream::connect_timeout(&local(port), SOON) {
                    Ok(stream) => stream,
                    Err(e) => return Some(format!("newcomer {n} was not let in: {e}")),
                };
                let mut client = Client { stream };
                client.try_send(&Connect::v311(&format!("new-{n}")).build());
                let (answer, end) = client.read_up_to(4, SOON);
                if answer != ACCEPTED {
                    return Some(format!("newcomer {n} got {answer:02x?} and then {end:?}"));
                }
                count.fetch_add(1, Ordering::SeqCst);
                // A reset leaves no port in TIME_WAIT.
                client.reset();
            }
            None
        });
        Self {
            stop,
            served,
            thread: Some(thread),
        }
    }

    /// How many were served.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }

    /// Whether they have ended early: one of them was not served.
    pub fn have_ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Ends them; gives how many were served.
    pub fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().expect("a thread");
        if let Some(fault) = thread.join().expect("the newcomers") {
            panic!("{fault}, after {} that were served", self.served());
        }
        self.served()
    }
}

impl Drop for Newcomers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
