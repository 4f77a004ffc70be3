//! A tokio task for one pair of any streams: what TLS needs, and what stands in when no relay
//! thread could be started.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::Established;
use super::pair::{Pair, Progress, Side};

/// Bytes that one read may bring, per thread and shared by all its connections.
pub(super) const SCRATCH: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// Relays the pair in a task of its own from now on.
pub fn spawn<C, B>(established: Established<C, B>)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(Relay::new(established));
}

/// The task.
pub(super) struct Relay<C, B> {
    client: C,
    broker: B,
    pair: Pair,
    last_activity: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<C, B> Relay<C, B> {
    pub(super) fn new(established: Established<C, B>) -> Self {
        Relay {
            client: established.client,
            broker: established.broker,
            pair: established.pair,
            last_activity: Instant::now(),
            timer: None,
        }
    }

    /// Ready when both sides have been silent for too long. The timer only looks again when it
    /// fires, so that traffic costs nothing here.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(idle) = self.pair.idle_timeout() else {
            return Poll::Pending;
        };
        let deadline = self.last_activity + idle;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if deadline < timer.deadline() {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(context));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}

impl<C, B> Future for Relay<C, B>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let relay = self.get_mut();
        let waker = context.waker().clone();
        let (progress, moved) = BUFFER.with_borrow_mut(|scratch| {
            relay.pair.advance(
                &mut Polled(&mut relay.client, &waker),
                &mut Polled(&mut relay.broker, &waker),
                scratch,
            )
        });
        if moved {
            relay.last_activity = Instant::now();
        }
        match progress {
            Progress::Done => return Poll::Ready(()),
            Progress::More => context.waker().wake_by_ref(),
            Progress::Wait => {}
        }
        ready!(relay.poll_idle(context));
        relay.pair.idle_timeout_passed();
        Poll::Ready(())
    }
}

/// A stream that is asked within a task: pending is `WouldBlock`, and the task is woken.
struct Polled<'a, S>(&'a mut S, &'a Waker);

impl<S: AsyncRead + AsyncWrite + Unpin> Side for Polled<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(buffer);
        let context = &mut Context::from_waker(self.1);
        match Pin::new(&mut *self.0).poll_read(context, &mut buffer) {
            Poll::Ready(result) => result.map(|()| buffer.filled().len()),
            Poll::Pending => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let context = &mut Context::from_waker(self.1);
        or_would_block(Pin::new(&mut *self.0).poll_write(context, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        let context = &mut Context::from_waker(self.1);
        or_would_block(Pin::new(&mut *self.0).poll_flush(context))
    }

    fn end(&mut self) -> io::Result<()> {
        let context = &mut Context::from_waker(self.1);
        or_would_block(Pin::new(&mut *self.0).poll_shutdown(context))
    }
}

fn or_would_block<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
    match polled {
        Poll::Ready(result) => result,
        Poll::Pending => Err(ErrorKind::WouldBlock.into()),
    }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
