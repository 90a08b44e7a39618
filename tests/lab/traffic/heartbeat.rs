//! An established connection that must survive whatever happens around it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::PATIENCE;
use crate::answer::Answer;

/// Between two lines.
const PACE: Duration = Duration::from_millis(50);

/// How long the other end may be silent before the connection counts as broken.
const LIMIT: Duration = Duration::from_secs(15);

/// A connection on which a line is sent, and answered, every 50 ms.
#[derive(Debug)]
pub struct Heartbeat {
    /// Who answers: the same pod for the connection's whole life.
    pub pod: String,
    pulse: Arc<Mutex<Pulse>>,
    task: JoinHandle<()>,
}

/// How the connection fared.
#[derive(Debug, Clone, Default)]
pub struct Pulse {
    pub beats: usize,
    pub longest_silence: Duration,
    /// Why it ended, if it did.
    pub broken: Option<String>,
}

impl Heartbeat {
    pub(super) async fn start(stream: TcpStream) -> Result<Self> {
        let mut stream = BufReader::new(stream);
        let banner = timeout(PATIENCE, exchange(&mut stream, "hello\n")).await.context("no banner")??;
        let pulse = Arc::new(Mutex::new(Pulse::default()));
        let record = Arc::clone(&pulse);
        let task = tokio::spawn(async move {
            let mut pace = interval(PACE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                pace.tick().await;
                let asked = Instant::now();
                let answered = timeout(LIMIT, exchange(&mut stream, "beat\n")).await;
                let mut pulse = record.lock().unwrap_or_else(PoisonError::into_inner);
                match answered.context("silence").flatten() {
                    Ok(_) => {
                        pulse.beats += 1;
                        pulse.longest_silence = pulse.longest_silence.max(asked.elapsed());
                    }
                    Err(error) => {
                        pulse.broken = Some(format!("{error:#}"));
                        return;
                    }
                }
            }
        });
        Ok(Self { pod: banner.pod, pulse, task })
    }

    /// How it fared so far, if it is still connected.
    ///
    /// # Errors
    /// When it broke, with the reason.
    pub fn alive(&self) -> Result<Pulse> {
        let pulse = self.pulse();
        ensure!(
            pulse.broken.is_none(),
            "the connection to {} broke after {} beats: {pulse:?}",
            self.pod,
            pulse.beats
        );
        Ok(pulse)
    }

    pub fn pulse(&self) -> Pulse {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn exchange(stream: &mut BufReader<TcpStream>, line: &str) -> Result<Answer> {
    stream.get_mut().write_all(line.as_bytes()).await.context("sending a line")?;
    let mut answer = String::new();
    ensure!(stream.read_line(&mut answer).await.context("reading a line")? > 0, "the other end closed");
    serde_json::from_str(&answer).with_context(|| format!("understanding {answer:?}"))
}
