//! Peers that break the rules, against a live server: each costs its own connection and nothing else.

mod frames;
mod hellos;
mod lies;
mod raw;

use libtest_mimic::Trial;

use crate::{
    Outcome,
    process::{Env, Line, Peer},
};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = hellos::trials();
    trials.extend(frames::trials());
    trials.extend(lies::trials());
    trials
}

/// A server that is attacked, and a client that must not notice.
struct Bed {
    server: Peer,
    witness: Peer,
    witness_id: String,
    address: String,
}

impl Bed {
    /// The witness and its connection are of the kind that `env` and `scheme` say.
    fn new(env: Env<'_>, scheme: &str, listen: &str) -> Self {
        let mut server = Peer::start("server", env);
        let mut witness = Peer::start("witness", env);
        // Two listeners, so that the attacked one can have narrow limits.
        let quiet = server.listen(&format!("{scheme}://127.0.0.1:0 mode=echo"));
        let opened = witness.connect(&format!("{quiet} mode=ping"));
        server.expect("accepted");
        let address = server.listen(&format!("auto://127.0.0.1:0 {listen}"));
        witness.expect("echoed");
        Self { server, witness, witness_id: opened.get("id").to_owned(), address }
    }

    /// Host and port of the attacked listener.
    fn port(&self) -> &str {
        self.address.split_once("://").expect("an address").1
    }

    /// The witness's connection still works: an echo that began after this call comes back.
    fn check_witness(&mut self) {
        let now = crate::process::now_us();
        while self.witness.expect("echoed").number("at") < now {}
    }

    /// The next end at the server: of the kind `kind`, with nothing pending.
    fn expect_end(&mut self, what: &str, kinds: &[&str]) -> Line {
        let ended = self.server.expect("ended");
        println!("{what}: {}", ended.get("text"));
        assert!(kinds.contains(&ended.get("kind")), "{what}: {ended:?} is none of {kinds:?}");
        assert_eq!(ended.get("pending"), "", "{what}: {ended:?}");
        ended
    }

    /// Everything but the witness is gone; then that, too, in order.
    fn finish(mut self) -> Outcome {
        self.check_witness();
        let (connections, handshakes) = (self.server.stat("connections"), self.server.stat("handshakes"));
        assert_eq!((connections, handshakes), (1, 0), "something stayed");
        self.witness.say(&format!("close {}", self.witness_id));
        assert_eq!(self.witness.expect("closed").get("ok"), "true");
        self.server.check_balance();
        self.witness.quit();
        self.server.quit();
        Ok(())
    }
}
