//! Unary calls in a closed loop: so many at a time, each one followed by the next.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::mpsc;
use ucrpc::{Code, Status, transport::spawn_local};

use super::{
    Mode,
    run::Run,
    service::{Payload, PerfClient},
};
use crate::exit::Failure;

/// Makes the calls of a mode on one channel.
#[derive(Clone)]
pub(crate) struct Caller {
    client: PerfClient,
    mode: Mode,
    payload: Bytes,
    timeout: Duration,
}

impl Caller {
    pub(crate) fn new(client: PerfClient, mode: Mode, payload: Bytes, timeout: Duration) -> Self {
        Self { client, mode, payload, timeout }
    }

    /// One call; an answer of another length is an error.
    pub(crate) async fn call(&self) -> Result<(), Status> {
        let message = || Payload { payload: self.payload.clone() };
        let (sent, back) = match self.mode {
            Mode::Attachment => {
                let call = self.client.echo(Payload::default()).attachment(self.payload.clone());
                (self.payload.len(), call.timeout(self.timeout).await?.attachment().len())
            }
            Mode::Oneway => {
                self.client.push(message()).timeout(self.timeout).await?;
                (0, 0)
            }
            _ => (self.payload.len(), self.client.echo(message()).timeout(self.timeout).await?.payload.len()),
        };
        if sent == back {
            return Ok(());
        }
        Err(Status::new(Code::ERESPONSE, format!("{back} bytes came back, not {sent}")))
    }
}

/// Keeps `depth` calls under way on each caller until the run is over.
pub(crate) async fn drive(run: &Rc<Run>, callers: &[Caller], depth: usize) -> Result<(), Failure> {
    if let ([caller], 1) = (callers, depth) {
        one_by_one(run, caller).await;
        return Ok(());
    }
    let (tell, mut hear) = mpsc::unbounded_channel::<()>();
    for caller in callers {
        for _ in 0..depth {
            let (run, caller, tell) = (run.clone(), caller.clone(), tell.clone());
            spawn_local(async move {
                one_by_one(&run, &caller).await;
                drop(tell);
            })?;
        }
    }
    drop(tell);
    // Nothing is ever sent: this ends when the last task does.
    while hear.recv().await.is_some() {}
    Ok(())
}

async fn one_by_one(run: &Run, caller: &Caller) {
    let mut start = Instant::now();
    loop {
        let result = caller.call().await;
        let now = Instant::now();
        let goes_on = match result {
            Ok(()) => run.done(start, now),
            Err(status) => {
                // A server that refuses at once is not to be asked again in the same moment.
                super::run::yield_now().await;
                run.failed(&status, start, now)
            }
        };
        if !goes_on {
            return;
        }
        start = now;
    }
}
