//! A tokio task for one pair of any streams: what TLS needs, and what stands in when no relay
//! thread could be started.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};

use super::Established;
use super::pair::{Farewell, Pair, Progress, Side};

/// Bytes that one read may bring, per thread and shared by all its connections.
pub(super) const SCRATCH: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// Where tasks hear that the process leaves: each permit has one of them leave, in the order in
/// which they began.
#[derive(Debug)]
pub struct Leaver {
    permits: Semaphore,
    farewell: OnceLock<Farewell>,
    begun: AtomicBool,
}

impl Default for Leaver {
    fn default() -> Self {
        Leaver {
            permits: Semaphore::new(0),
            farewell: OnceLock::new(),
            begun: AtomicBool::new(false),
        }
    }
}

impl Leaver {
    /// Has so many tasks leave; the first farewell is everybody's.
    pub fn send_away(&self, count: usize, farewell: Farewell) {
        self.farewell.get_or_init(|| farewell);
        self.begun.store(true, Ordering::SeqCst);
        self.permits.add_permits(count);
    }

    /// Whether nobody has left a turn to others.
    pub fn has_waiting(&self) -> bool {
        self.permits.available_permits() == 0
    }

    /// Resolves when it is the turn of a task.
    async fn turn(self: Arc<Self>) -> Option<Farewell> {
        // Never closed.
        self.permits.acquire().await.ok()?.forget();
        self.farewell.get().copied()
    }
}

/// Relays the pair in a task of its own from now on.
pub fn spawn<C, B>(established: Established<C, B>, leaver: Arc<Leaver>)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(Relay::new(established, leaver));
}

/// The task.
pub(super) struct Relay<C, B> {
    client: C,
    broker: B,
    pair: Pair,
    last_activity: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    leaver: Arc<Leaver>,
    turn: Option<Turn>,
    waits_for_turn: bool,
}

type Turn = Pin<Box<dyn Future<Output = Option<Farewell>> + Send>>;

impl<C, B> Relay<C, B> {
    pub(super) fn new(established: Established<C, B>, leaver: Arc<Leaver>) -> Self {
        Relay {
            client: established.client,
            broker: established.broker,
            pair: established.pair,
            last_activity: Instant::now(),
            timer: None,
            turn: Some(Box::pin(leaver.clone().turn())),
            waits_for_turn: false,
            leaver,
        }
    }

    /// Hears whether it is its turn to leave. Asked in earnest at first, to be woken later, and
    /// once anybody leaves.
    fn poll_turn(&mut self, context: &mut Context<'_>) {
        if self.waits_for_turn && !self.leaver.begun.load(Ordering::SeqCst) {
            return;
        }
        self.waits_for_turn = true;
        let Some(turn) = &mut self.turn else { return };
        if let Poll::Ready(farewell) = turn.as_mut().poll(context) {
            self.turn = None;
            if let Some(farewell) = farewell {
                self.pair.leave(farewell, std::time::Instant::now());
            }
        }
    }

    /// Ready when both sides have been silent for too long, or a boundary was looked for in vain.
    /// The timer only looks again when it fires, so that traffic costs nothing here.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let idle = self
            .pair
            .idle_timeout()
            .map(|idle| self.last_activity + idle);
        let leaving = self.pair.boundary_limit().map(Instant::from_std);
        let Some(deadline) = idle.into_iter().chain(leaving).min() else {
            return Poll::Pending;
        };
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
        relay.poll_turn(context);
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
        let now = Instant::now();
        if let Some(limit) = relay.pair.boundary_limit()
            && now.into_std() >= limit
        {
            relay.pair.boundary_limit_passed();
            relay.last_activity = now;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
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
