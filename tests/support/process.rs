//! A child process whose output is kept line by line and which never outlives its test.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long the last output of a process may take after its end.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// Raises the soft limit of open files of this process, and so of its children, for tests that
/// hold a thousand connections.
pub fn more_open_files() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit
        .maximum
        .map_or(Some(16_384), |max| Some(max.min(16_384)));
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("more open files");
}

#[derive(Default)]
struct Lines {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

/// A running child and what it has printed.
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Arc<Lines>,
}

impl Process {
    /// Starts `command` with both outputs captured.
    ///
    /// # Panics
    /// When the program cannot be started; `hint` says what to do about it.
    pub fn spawn(name: &str, command: &mut Command, hint: &str) -> Self {
        Self::spawn_with(name, command.stdin(Stdio::null()), hint)
    }

    /// The same for a program that listens to [`Process::say`].
    ///
    /// # Panics
    /// When the program cannot be started; `hint` says what to do about it.
    pub fn spawn_listening(name: &str, command: &mut Command, hint: &str) -> Self {
        Self::spawn_with(name, command.stdin(Stdio::piped()), hint)
    }

    fn spawn_with(name: &str, command: &mut Command, hint: &str) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {name}: {e}. {hint}"));
        let lines = Arc::new(Lines::default());
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        keep(stdout, Arc::clone(&lines));
        keep(stderr, Arc::clone(&lines));
        Self {
            name: name.to_owned(),
            stdin: child.stdin.take(),
            child,
            lines,
        }
    }

    /// Writes a line to its standard input.
    ///
    /// # Panics
    /// When it does not listen, or listens no more.
    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("spawn_listening");
        let written = stdin.write_all(format!("{line}\n").as_bytes());
        written.and_then(|()| stdin.flush()).expect("it listens");
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to this process only.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.id())
            .ok()
            .and_then(Pid::from_raw)
            .expect("a process id");
        kill_process(pid, signal).expect("signal");
    }

    /// How many lines have been printed: a mark for [`Process::wait_for_line_after`].
    pub fn mark(&self) -> usize {
        self.lines.lines.lock().expect("lines").len()
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lines.lock().expect("lines").clone()
    }

    /// How many lines so far contain `text`.
    pub fn count(&self, text: &str) -> usize {
        self.lines()
            .iter()
            .filter(|line| line.contains(text))
            .count()
    }

    /// Waits for a line with `text` among those behind `mark`, and returns it.
    ///
    /// # Panics
    /// When the deadline passes, or the process ends without such a line.
    pub fn wait_for_line_after(&mut self, mark: usize, text: &str, within: Duration) -> String {
        let start = Instant::now();
        let mut ended_at: Option<Instant> = None;
        loop {
            let ended = self.child.try_wait().expect("wait");
            if ended.is_some() {
                ended_at.get_or_insert_with(Instant::now);
            }
            let guard = self.lines.lines.lock().expect("lines");
            if let Some(line) = guard.iter().skip(mark).find(|line| line.contains(text)) {
                return line.clone();
            }
            let timed_out = start.elapsed() > within;
            // A process that has just ended may still have output on its way.
            if timed_out || ended_at.is_some_and(|at| at.elapsed() > LAST_OUTPUT) {
                let said = guard.join("\n");
                drop(guard);
                panic!(
                    "{} never printed {text:?} (ended: {ended:?}, timed out: {timed_out}); it said:\n{said}",
                    self.name
                );
            }
            drop(
                self.lines
                    .grown
                    .wait_timeout(guard, Duration::from_millis(20)),
            );
        }
    }

    /// Waits for such a line, from this process or from one that it started and that has its
    /// outputs: this one may be gone.
    ///
    /// # Panics
    /// When the deadline passes.
    pub fn wait_for_output_after(&self, mark: usize, text: &str, within: Duration) -> String {
        let start = Instant::now();
        let mut guard = self.lines.lines.lock().expect("lines");
        loop {
            if let Some(line) = guard.iter().skip(mark).find(|line| line.contains(text)) {
                return line.clone();
            }
            let Some(left) = within.checked_sub(start.elapsed()) else {
                let said = guard[mark.min(guard.len())..].join("\n");
                drop(guard);
                panic!("nobody printed {text:?} within {within:?}, but:\n{said}");
            };
            guard = self.lines.grown.wait_timeout(guard, left).expect("lines").0;
        }
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits for the end of the process.
    ///
    /// # Panics
    /// When it still runs at the deadline.
    pub fn wait_for_exit(&mut self, within: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(
                start.elapsed() < within,
                "{} still runs after {within:?}",
                self.name
            );
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Kills it at once, as a crash or a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let lines = self.lines();
            let tail = lines.len().saturating_sub(60);
            eprintln!(
                "--- last lines of {}:\n{}\n---",
                self.name,
                lines[tail..].join("\n")
            );
        }
    }
}

fn keep(output: impl Read + Send + 'static, lines: Arc<Lines>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            lines.lines.lock().expect("lines").push(text);
            lines.grown.notify_all();
            line.clear();
        }
    });
}
