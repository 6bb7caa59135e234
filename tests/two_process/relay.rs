//! A relay between a client and a server that may change what they negotiate: how a peer lies without UCX code of its own.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use ucrpc::transport::proto::hello::{self, ClientHello, Decoded, Message};

/// Changes the first message of a direction.
pub(crate) type Edit = fn(&mut Message);

/// Leaves everything as it is.
pub(crate) fn honest(_: &mut Message) {}

/// A running relay; it stops when the process does.
pub(crate) struct Relay {
    address: SocketAddr,
    hellos: Arc<Mutex<Vec<ClientHello>>>,
}

impl Relay {
    /// Relays to `server`, changing the hello and the answer.
    pub(crate) fn start(server: SocketAddr, hello: Edit, answer: Edit) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("bound");
        let hellos: Arc<Mutex<Vec<_>>> = Arc::default();
        let seen = hellos.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(server).expect("the server listens");
                let seen = seen.clone();
                let (from, to) = (clone(&client), clone(&server));
                std::thread::spawn(move || {
                    relay(from, to, hello, &|message| {
                        if let Message::ClientHello(hello) = message {
                            seen.lock().expect("not poisoned").push(hello.clone());
                        }
                    })
                });
                std::thread::spawn(move || relay(server, client, answer, &|_| {}));
            }
        });
        Self { address, hellos }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The last hello that came by, as the client sent it.
    pub(crate) fn hello(&self) -> ClientHello {
        self.hellos.lock().expect("not poisoned").last().expect("a client has connected").clone()
    }
}

fn clone(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("clone a socket")
}

fn relay(mut from: TcpStream, mut to: TcpStream, edit: Edit, see: &dyn Fn(&Message)) {
    if let Some((mut message, rest)) = read_message(&mut from) {
        see(&message);
        edit(&mut message);
        let _ = to.write_all(&hello::encode(&message));
        let _ = to.write_all(&rest);
        let _ = std::io::copy(&mut from, &mut to);
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Reads one negotiation message and what came with it; `None` if the stream ends or is something else.
pub(crate) fn read_message(from: &mut TcpStream) -> Option<(Message, Vec<u8>)> {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        if let Decoded::Message(message, used) = hello::decode(&bytes).ok()? {
            return Some((message, bytes.split_off(used)));
        }
        match from.read(&mut part) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&part[..n]),
            _ => return None,
        }
    }
}
