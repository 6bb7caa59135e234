//! Messages there and back on a stream.

use std::rc::Rc;

use bytes::Bytes;
use ucrpc::{
    rpc::streaming::{StreamConfig, StreamReader, StreamWriter},
    transport::spawn_local,
};

use super::{
    run::{Flight, Run},
    service::{Payload, PerfClient},
};
use crate::exit::{Exit, Failure};

/// A stream to a server that sends each message back.
pub(crate) struct Echoes {
    reader: StreamReader,
    writer: Option<StreamWriter>,
}

impl Echoes {
    pub(crate) async fn open(client: &PerfClient) -> Result<Self, Failure> {
        let opened = client.chat(Payload::default()).open_stream(StreamConfig::default()).await;
        let (_, stream) = opened.map_err(|status| Failure::from(status).while_doing("cannot open a stream"))?;
        let (reader, writer) = stream.into_bytes().split();
        Ok(Self { reader, writer: Some(writer) })
    }

    /// Sends messages until the run is over, at most `depth` at a time.
    pub(crate) async fn drive(&mut self, run: &Rc<Run>, payload: &Bytes, depth: usize) -> Result<(), Failure> {
        let flight = Rc::new(Flight::new(depth));
        let Some(mut writer) = self.writer.take() else { return Ok(()) };
        let (writer_flight, writer_run, payload) = (flight.clone(), run.clone(), payload.clone());
        let (give_back, mut given_back) = tokio::sync::mpsc::unbounded_channel();
        spawn_local(async move {
            let mut result = Ok(());
            while writer_flight.launch(&writer_run).await {
                result = writer.send(payload.clone()).await;
                if result.is_err() {
                    break;
                }
            }
            let _ = give_back.send((writer, result));
        })?;
        while flight.is_under_way().await {
            match self.reader.next().await {
                Some(Ok(_)) => flight.land(run),
                Some(Err(status)) => {
                    return Err(Failure::new(Exit::Lost, format!("the stream broke: {status}")));
                }
                None => return Err(Failure::new(Exit::Lost, "the server closed the stream")),
            }
        }
        if let Some((writer, result)) = given_back.recv().await {
            self.writer = Some(writer);
            result?;
        }
        Ok(())
    }
}
