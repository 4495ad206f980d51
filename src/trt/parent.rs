//! The side of a build that stays alive whatever the parser does.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::builder::partial_path;
use super::events::{Event, LogLevel, trace};
use super::progress::Progress;
use super::spec::{BuildReport, BuildSpec};
use super::wire::{CANCEL, Message};
use crate::error::{Error, Result};

/// How often a quiet build is asked whether it was cancelled.
const POLL: Duration = Duration::from_millis(50);
/// How long a child that was cancelled, or has closed its outputs, may take to stop by itself.
const GRACE: Duration = Duration::from_secs(3);
/// How many of a child's last lines a crash report carries.
const LAST_LINES: usize = 8;

/// Builds `spec.plan` in a child process, `exe` with `args`, which has to call
/// [`child::run`](super::child::run) and do nothing else.
///
/// `on_progress` is called on this thread. TensorRT's log lines go to `tracing`, target
/// `tensorrt`. When `cancel` is set the child is asked to stop, and killed if it does not within
/// three seconds. Whatever ends the child, the plan exists complete or is untouched.
///
/// # Errors
/// [`Error::Unavailable`] if no library builds for the target, [`Error::OutOfMemory`] before the
/// graph is read, [`Error::Malformed`] and [`Error::Unsupported`] from the parser,
/// [`Error::Shape`] for profiles that do not fit the graph, [`Error::Cancelled`],
/// [`Error::Engine`] for whatever else TensorRT refuses, and [`Error::Crashed`] with the signal
/// and the child's last lines if the child died.
pub fn build_in_child(
    spec: &BuildSpec,
    exe: &Path,
    args: &[&str],
    on_progress: &mut dyn FnMut(&Progress),
    cancel: &AtomicBool,
) -> Result<BuildReport> {
    spec.validate()?;
    let mut request = serde_json::to_vec(spec).map_err(|e| Error::Argument {
        name: "plan",
        reason: format!("cannot be passed on: {e}"),
    })?;
    request.push(b'\n');
    // A process group of its own: Ctrl-C at a terminal reaches the parent, which then cancels.
    let mut child = Command::new(exe)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(Error::io(exe))?;
    let partial = partial_path(&spec.plan, child.id());
    let outcome = converse(&mut child, &request, on_progress, cancel);
    if outcome.is_err() {
        // A child that was killed cannot tidy up; that there is nothing to tidy is usual.
        let _ = child.kill();
        let _ = child.wait();
        let _ = std::fs::remove_file(partial);
    }
    match outcome? {
        Ended::Told(message) => match *message {
            Message::Result(report) => Ok(report),
            Message::Error(error) => Err(error.into()),
            Message::Event(_) => Err(crashed(spec, None, &VecDeque::new())),
        },
        Ended::Died(status, lines) => {
            let _ = std::fs::remove_file(partial_path(&spec.plan, child.id()));
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            Err(crashed(spec, Some(status), &lines))
        }
    }
}

/// How a child ended.
enum Ended {
    /// With a result or an error.
    Told(Box<Message>),
    /// Without either; its last lines.
    Died(ExitStatus, VecDeque<String>),
}

enum Line {
    Out(String),
    Err(String),
}

fn converse(
    child: &mut Child,
    request: &[u8],
    on_progress: &mut dyn FnMut(&Progress),
    cancel: &AtomicBool,
) -> Result<Ended> {
    let mut stdin = child.stdin.take();
    if let Some(pipe) = &mut stdin {
        // A child that is dead already is noticed below.
        let _ = pipe.write_all(request);
    }
    let lines = read_lines(child)?;
    let mut last = VecDeque::new();
    let mut told = None;
    let mut deadline = None;
    let mut ended_at = None;
    loop {
        match lines.recv_timeout(POLL) {
            Ok(Line::Out(line)) => match serde_json::from_str(&line) {
                Ok(Message::Event(Event::Progress(progress))) => on_progress(&progress),
                Ok(Message::Event(Event::Log { level, message })) => {
                    trace(level, &message);
                    keep(&mut last, message);
                }
                Ok(message) => told = Some(Box::new(message)),
                Err(_) if line.is_empty() => {}
                Err(_) => keep(&mut last, line),
            },
            Ok(Line::Err(line)) => {
                trace(LogLevel::Debug, &line);
                keep(&mut last, line);
            }
            // Once the child has ended, silence means that all it wrote was read, also where
            // a process of its own making still holds the pipes.
            Err(RecvTimeoutError::Timeout) => {
                let ended = child.try_wait().map_err(Error::io("build child"))?;
                if ended.is_some() && ended_at.get_or_insert_with(Instant::now).elapsed() > GRACE {
                    break;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
        stop_if_asked(child, &mut stdin, cancel, &mut deadline);
    }
    let status = end(child).map_err(Error::io("build child"))?;
    drop(stdin);
    Ok(told.map_or(Ended::Died(status, last), Ended::Told))
}

/// The status of a child that has nothing more to say; one that lives on for longer than
/// [`GRACE`] is killed.
fn end(child: &mut Child) -> std::io::Result<ExitStatus> {
    let deadline = Instant::now() + GRACE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            return child.wait();
        }
        std::thread::sleep(POLL);
    }
}

/// First asks, then kills.
fn stop_if_asked(
    child: &mut Child,
    stdin: &mut Option<ChildStdin>,
    cancel: &AtomicBool,
    deadline: &mut Option<Instant>,
) {
    if !cancel.load(Ordering::Relaxed) {
        return;
    }
    match deadline {
        None => {
            *deadline = Some(Instant::now() + GRACE);
            if let Some(pipe) = stdin {
                let _ = writeln!(pipe, "{CANCEL}");
            }
        }
        Some(end) if Instant::now() >= *end => {
            let _ = child.kill();
        }
        Some(_) => {}
    }
}

/// Both outputs of the child, line by line; the channel closes when the child has closed both.
fn read_lines(child: &mut Child) -> Result<Receiver<Line>> {
    let (sender, receiver) = channel();
    if let Some(out) = child.stdout.take() {
        spawn_reader(out, sender.clone(), Line::Out)?;
    }
    if let Some(err) = child.stderr.take() {
        spawn_reader(err, sender, Line::Err)?;
    }
    Ok(receiver)
}

fn spawn_reader(
    pipe: impl std::io::Read + Send + 'static,
    sender: Sender<Line>,
    wrap: fn(String) -> Line,
) -> Result<()> {
    let read = move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        // TensorRT's lines need not be UTF-8.
        while pipe.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(wrap(text)).is_err() {
                break;
            }
        }
    };
    let thread = std::thread::Builder::new().name("build child output".to_owned());
    thread
        .spawn(read)
        .map_err(Error::io("build child output"))?;
    Ok(())
}

fn keep(last: &mut VecDeque<String>, line: String) {
    if last.len() == LAST_LINES {
        last.pop_front();
    }
    last.push_back(line);
}

fn crashed(spec: &BuildSpec, status: Option<ExitStatus>, lines: &VecDeque<String>) -> Error {
    let mut reason = status.map_or("no result".to_owned(), describe);
    if !lines.is_empty() {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        reason = format!("{reason}; its last lines: {}", lines.join(" / "));
    }
    Error::Crashed {
        component: spec.component(),
        reason,
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(libc::SIGKILL), _) => {
            "killed by SIGKILL, as the system does when memory runs out".to_owned()
        }
        (Some(signal), _) => format!("killed by {}", signal_name(signal)),
        (None, Some(code)) => format!("exit status {code} without a result"),
        (None, None) => "ended without a result".to_owned(),
    }
}

fn signal_name(signal: i32) -> String {
    match signal {
        libc::SIGABRT => "SIGABRT".to_owned(),
        libc::SIGBUS => "SIGBUS".to_owned(),
        libc::SIGFPE => "SIGFPE".to_owned(),
        libc::SIGILL => "SIGILL".to_owned(),
        libc::SIGINT => "SIGINT".to_owned(),
        libc::SIGSEGV => "SIGSEGV".to_owned(),
        libc::SIGTERM => "SIGTERM".to_owned(),
        other => format!("signal {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trt::Sm;

    /// Runs a shell script as the child.
    fn with_script(script: &str, cancel: &AtomicBool) -> Result<BuildReport> {
        let dir = tempfile::tempdir().expect("temp dir");
        let spec = BuildSpec::new("x.onnx", dir.path().join("vision.plan"), Sm::Sm(86));
        let mut ignore = |_: &Progress| {};
        build_in_child(
            &spec,
            Path::new("/bin/sh"),
            &["-c", script],
            &mut ignore,
            cancel,
        )
    }

    fn crash_of(script: &str) -> (String, String) {
        match with_script(script, &AtomicBool::new(false)) {
            Err(Error::Crashed { component, reason }) => (component, reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn child_that_dies_is_a_crash_with_signal_and_last_lines() {
        let (component, reason) = crash_of("echo one; echo two >&2; kill -FPE $$");
        assert_eq!(component, "vision");
        assert!(reason.contains("SIGFPE"), "{reason}");
        assert!(reason.contains("one") && reason.contains("two"), "{reason}");
        let (_, reason) = crash_of("kill -KILL $$");
        assert!(
            reason.contains("SIGKILL") && reason.contains("memory"),
            "{reason}"
        );
        let (_, reason) = crash_of("exit 7");
        assert!(reason.contains("exit status 7"), "{reason}");
    }

    #[test]
    fn crash_report_keeps_only_the_last_lines() {
        let (_, reason) = crash_of("for i in $(seq 100); do echo line$i; done; exit 7");
        assert!(
            reason.contains("line100") && reason.contains("line93"),
            "{reason}"
        );
        assert!(!reason.contains("line92"), "{reason}");
    }

    #[test]
    fn child_that_ignores_a_cancel_is_killed() {
        let begin = Instant::now();
        let outcome = with_script("sleep 20 & wait", &AtomicBool::new(true));
        assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
        assert!(begin.elapsed() >= GRACE && begin.elapsed() < GRACE * 5);
    }

    #[test]
    fn child_that_falls_silent_and_lives_on_is_killed() {
        let (_, reason) = crash_of("exec >&- 2>&-; sleep 60");
        assert!(reason.contains("SIGKILL"), "{reason}");
    }

    #[test]
    fn child_that_cannot_start_names_the_program() {
        let spec = BuildSpec::new("x.onnx", "x.plan", Sm::Sm(86));
        let mut ignore = |_: &Progress| {};
        let outcome = build_in_child(
            &spec,
            Path::new("/none"),
            &[],
            &mut ignore,
            &AtomicBool::new(false),
        );
        assert!(matches!(outcome, Err(Error::Io { path, .. }) if path == Path::new("/none")));
    }
}
