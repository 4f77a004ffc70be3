//! The thread that writes the access log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use prometheus_client::metrics::counter::Counter;

use super::output::Output;
use crate::telemetry::throttle::Throttle;

/// Bytes that are written at a time, unless a single line is longer.
const BATCH: usize = 64 * 1024;

/// What the writer is told.
pub(super) enum Message {
    /// Write this line.
    Line(Vec<u8>),
    /// Look whether the file is to be opened again.
    Wake,
    /// Say when everything before is written.
    Flush(Sender<()>),
}

/// What the thread owns.
#[derive(Debug)]
pub(super) struct Writer {
    /// Where lines go.
    pub output: Output,
    /// Whether the file is to be opened again.
    pub reopen: Arc<AtomicBool>,
    /// Lines that were not written.
    pub dropped: Counter,
}

impl Writer {
    /// Writes what comes until nobody can send any more.
    pub fn run(mut self, queue: &Receiver<Message>) {
        let throttle = Throttle::default();
        let mut batch = Vec::new();
        let mut told = self.dropped.get();
        while let Ok(first) = queue.recv() {
            let mut lines = 0;
            let mut waiting = Vec::new();
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Line(line) => {
                        batch.extend_from_slice(&line);
                        lines += 1;
                    }
                    Message::Wake => {}
                    Message::Flush(done) => waiting.push(done),
                }
                next = match batch.len() < BATCH {
                    true => queue.try_recv().ok(),
                    false => None,
                };
            }
            if self.reopen.swap(false, Ordering::SeqCst) {
                match self.output.reopen() {
                    Ok(()) => log::info!("access log opened again"),
                    Err(error) => log::error!("the access log stays where it is: {error}"),
                }
            }
            if let Err(error) = self.output.write(&batch) {
                // How many of them are in the file nobody knows; none counts as written.
                self.dropped.inc_by(lines);
                if let Some(more) = throttle.admit("write") {
                    log::error!("the access log cannot be written: {error}{more}");
                }
            }
            batch.clear();
            for done in waiting {
                // Whoever asked may have given up.
                let _ = done.send(());
            }
            let dropped = self.dropped.get();
            if dropped > told
                && let Some(more) = throttle.admit("dropped")
            {
                log::warn!(
                    "{} lines of the access log were dropped{more}",
                    dropped - told
                );
                told = dropped;
            }
        }
    }
}
