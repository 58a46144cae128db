//! One process that this one started, and that never outlives it.
//!
//! The child's standard input is a pipe whose other end is held here and never written to. When it closes,
//! because this process let go of the child, ended, crashed or was killed, the child ends as well: so it is on
//! every system, and nothing has to be told. The child keeps to it by `foreshard node --until-stdin-closes`.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{ChildStdin, Command};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// Bytes of the last line on stderr that are remembered.
const SAID_MAX: usize = 400;

/// A running process. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Child {
    stdin: Mutex<Option<ChildStdin>>,
    kill: Arc<Notify>,
    ended: watch::Receiver<Option<Ended>>,
    _watching: JoinSet<()>,
}

/// How a process ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    /// Its status, in words.
    pub(super) status: String,
    /// Its last line on stderr.
    pub(super) said: String,
}

impl Child {
    /// Starts a process whose log lines are written to our stderr, and calls `on_end` once it has ended and is
    /// reaped.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn start<F: Future<Output = ()> + Send>(
        mut command: Command,
        on_end: impl FnOnce() -> F + Send + 'static,
    ) -> std::io::Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // Ctrl-C in a terminal is for the server, which ends its nodes when their queries are over.
        #[cfg(unix)]
        command.process_group(0);
        let mut process = command.spawn()?;
        // Waiting for a process closes its input, so it is taken out first.
        let stdin = Mutex::new(process.stdin.take());
        let stderr = process.stderr.take();
        let kill = Arc::<Notify>::default();
        let (tell, ended) = watch::channel(None);
        let mut watching = JoinSet::new();
        let killed = Arc::clone(&kill);
        watching.spawn(async move {
            let ending = async {
                tokio::select! {
                    status = process.wait() => status,
                    () = killed.notified() => {
                        // It may have ended at this moment.
                        let _ended = process.start_kill();
                        process.wait().await
                    }
                }
            };
            let (status, said) = tokio::join!(ending, last_line(stderr));
            on_end().await;
            let status = words(status);
            tell.send_replace(Some(Ended { status, said }));
        });
        Ok(Self { stdin, kill, ended, _watching: watching })
    }

    /// Waits until it has ended, and says how.
    pub(super) async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        let ended = ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        ended.unwrap_or(Ended { status: "not watched any more".to_owned(), said: String::new() })
    }

    /// Lets go of it, and kills it if it has not ended after `patience`. Returns when it is gone.
    pub(super) async fn end(&self, patience: Duration) {
        drop(self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take());
        if tokio::time::timeout(patience, self.ended()).await.is_err() {
            self.kill.notify_one();
            self.ended().await;
        }
    }

    /// Whether it has ended.
    pub(super) fn is_over(&self) -> bool {
        self.ended.borrow().is_some()
    }
}

fn words(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// Hands on what a process says, and returns its last line once nobody can say more.
async fn last_line(stderr: Option<impl AsyncRead + Unpin>) -> String {
    use std::io::Write;
    let Some(stderr) = stderr else { return String::new() };
    let mut lines = BufReader::new(stderr).lines();
    let mut last = String::new();
    // What is no text is not worth more than an end.
    while let Ok(Some(line)) = lines.next_line().await {
        // Whoever closed our stderr does not want to know.
        let _unread = writeln!(std::io::stderr(), "{line}");
        if !line.trim().is_empty() {
            last = line.chars().take(SAID_MAX).collect();
        }
    }
    last
}
