//! Bytes of the negotiation messages.

use super::{
    Accept, ClientHello, Decoded, ENVELOPE, Fallback, HelloError, MAGIC, MAJOR, MAX_FIELDS, MAX_FIELDS_LEN, MAX_TEXT,
    MAX_WORKER_ADDRESS, MINOR, Message, Nak, REQUIRED_FIELD, Ready, Reject, Transport, UcxInfo, Want,
};
use crate::proto::{clip, header::Credit};

/// Field types. A number is never used again for something else.
pub(super) mod field {
    /// u8: 0 auto, 1 tcp, 2 ucx.
    pub(crate) const WANT: u16 = 1;
    /// u64.
    pub(crate) const REQUIRED_FEATURES: u16 = 2;
    /// u64.
    pub(crate) const SUPPORTED_FEATURES: u16 = 3;
    /// 16 bytes.
    pub(crate) const PROCESS_ID: u16 = 4;
    /// u32 id, u32 generation.
    pub(crate) const CONNECTION: u16 = 5;
    /// u64 `max_message`, u32 `max_head`.
    pub(crate) const LIMITS: u16 = 6;
    /// u32 messages, u64 bytes.
    pub(crate) const CREDIT: u16 = 7;
    /// u32 ms.
    pub(crate) const KEEPALIVE: u16 = 8;
    /// 3 x u16 version, u64 fingerprint, u16 length of settings, settings, worker address.
    pub(crate) const UCX: u16 = 9;
    /// u16 code, text: why the sender has no UCX, fell back or rejects.
    pub(crate) const REASON: u16 = 10;
    /// u8: 1 tcp, 2 ucx.
    pub(crate) const TRANSPORT: u16 = 11;
    /// Text.
    pub(crate) const TEXT: u16 = 12;
    /// u64.
    pub(crate) const ID: u16 = 13;

    /// u16.
    pub(crate) const ENDPOINT: u16 = 14;

    /// The highest of them.
    pub(crate) const LAST: u16 = ENDPOINT;
}

/// Writes `message`.
///
/// Texts are cut to [`MAX_TEXT`] bytes. A [`UcxInfo`] that does not [fit](UcxInfo::fits) is left out, so the peer
/// goes on without UCX or says what is missing.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut out = Writer::new(match message {
        Message::ClientHello(_) => 1,
        Message::Accept(_) => 2,
        Message::Reject(_) => 3,
        Message::Ready(_) => 4,
        Message::Fallback(_) => 5,
        Message::Nak(_) => 6,
        Message::Ping(_) => 7,
        Message::Pong(_) => 8,
    });
    match message {
        Message::ClientHello(hello) => out.client_hello(hello),
        Message::Accept(accept) => out.accept(accept),
        Message::Reject(Reject { code, text }) | Message::Fallback(Fallback { code, text }) => out.reason(*code, text),
        Message::Ready(Ready) => {}
        Message::Ping(id) | Message::Pong(id) => out.field(field::ID, &[&id.to_le_bytes()]),
        Message::Nak(Nak { text }) => out.field(field::TEXT, &[clip(text, MAX_TEXT).as_bytes()]),
    }
    out.finish()
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(message_type: u8) -> Self {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[MAJOR, message_type]);
        out.extend_from_slice(&MINOR.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        Self(out)
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() - ENVELOPE;
        debug_assert!(len <= MAX_FIELDS_LEN, "every field has a limit and they fit together");
        self.0[8..ENVELOPE].copy_from_slice(&(len as u32).to_le_bytes());
        self.0
    }

    fn field(&mut self, field: u16, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        debug_assert!(len <= usize::from(u16::MAX), "every field has a limit");
        self.0.extend_from_slice(&field.to_le_bytes());
        self.0.extend_from_slice(&(len as u16).to_le_bytes());
        parts.iter().for_each(|part| self.0.extend_from_slice(part));
    }

    fn reason(&mut self, code: u16, text: &str) {
        self.field(field::REASON, &[&code.to_le_bytes(), clip(text, MAX_TEXT).as_bytes()]);
    }

    fn credit(&mut self, credit: Credit) {
        self.field(field::CREDIT, &[&credit.messages.to_le_bytes(), &credit.bytes.to_le_bytes()]);
    }

    fn ucx(&mut self, info: &UcxInfo) {
        let settings = clip(&info.settings, MAX_TEXT).as_bytes();
        let (major, minor, patch) = info.version;
        self.field(
            field::UCX,
            &[
                &major.to_le_bytes(),
                &minor.to_le_bytes(),
                &patch.to_le_bytes(),
                &info.fingerprint.to_le_bytes(),
                &(settings.len() as u16).to_le_bytes(),
                settings,
                &info.worker_address,
            ],
        );
    }

    fn endpoint(&mut self, number: Option<u16>) {
        if let Some(number) = number {
            self.field(field::ENDPOINT, &[&number.to_le_bytes()]);
        }
    }

    fn client_hello(&mut self, hello: &ClientHello) {
        let want = match hello.want {
            Want::Auto => 0,
            Want::Tcp => 1,
            Want::Ucx => 2,
        };
        self.field(field::WANT, &[&[want]]);
        self.field(field::REQUIRED_FEATURES, &[&hello.required_features.to_le_bytes()]);
        self.field(field::SUPPORTED_FEATURES, &[&hello.supported_features.to_le_bytes()]);
        self.field(field::PROCESS_ID, &[&hello.process_id]);
        self.field(field::CONNECTION, &[&hello.conn.to_le_bytes(), &hello.generation.to_le_bytes()]);
        self.field(field::LIMITS, &[&hello.max_message.to_le_bytes(), &hello.max_head.to_le_bytes()]);
        self.credit(hello.credit);
        self.field(field::KEEPALIVE, &[&hello.keepalive_ms.to_le_bytes()]);
        self.endpoint(hello.least_endpoint);
        match (&hello.ucx, &hello.no_ucx_reason) {
            (Some(info), _) if info.fits() => self.ucx(info),
            (_, Some((code, text))) => self.reason(*code, text),
            _ => {}
        }
    }

    fn accept(&mut self, accept: &Accept) {
        let transport = match accept.transport {
            Transport::Tcp => 1,
            Transport::Ucx => 2,
        };
        self.field(field::TRANSPORT, &[&[transport]]);
        self.field(field::REQUIRED_FEATURES, &[&accept.required_features.to_le_bytes()]);
        self.field(field::SUPPORTED_FEATURES, &[&accept.supported_features.to_le_bytes()]);
        self.field(field::PROCESS_ID, &[&accept.process_id]);
        self.field(field::CONNECTION, &[&accept.conn.to_le_bytes(), &accept.generation.to_le_bytes()]);
        self.field(field::LIMITS, &[&accept.max_message.to_le_bytes(), &accept.max_head.to_le_bytes()]);
        self.credit(accept.credit);
        self.field(field::KEEPALIVE, &[&accept.keepalive_ms.to_le_bytes()]);
        self.endpoint(accept.endpoint.filter(|_| accept.transport == Transport::Ucx));
        if let Some(info) = accept.ucx.as_ref().filter(|info| info.fits()) {
            self.ucx(info);
        }
        if let (Transport::Tcp, Some((code, text))) = (accept.transport, &accept.fallback) {
            self.reason(*code, text);
        }
    }
}

/// Reads the message that starts at `bytes[0]`. Bytes that can't become a message are refused as early as they show.
///
/// # Errors
/// See [`HelloError`]. No memory is taken for more than the message's own fields.
pub fn decode(bytes: &[u8]) -> Result<Decoded, HelloError> {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Err(HelloError::Magic);
    }
    if let Some(&major) = bytes.get(4)
        && major != MAJOR
    {
        return Err(HelloError::Major(major));
    }
    if let Some(&message_type) = bytes.get(5)
        && !(1..=8).contains(&message_type)
    {
        return Err(HelloError::MessageType(message_type));
    }
    let Some((&[.., message_type, _, _, l0, l1, l2, l3], rest)) = bytes.split_first_chunk::<ENVELOPE>() else {
        return Ok(Decoded::NeedMore(ENVELOPE));
    };
    let len = u32::from_le_bytes([l0, l1, l2, l3]);
    if len > MAX_FIELDS_LEN as u32 {
        return Err(HelloError::TooLong(len));
    }
    let total = ENVELOPE + len as usize;
    let Some(fields) = rest.get(..len as usize) else {
        return Ok(Decoded::NeedMore(total));
    };
    let fields = Fields::parse(fields)?;
    let message = match message_type {
        1 => Message::ClientHello(client_hello(&fields)?),
        2 => Message::Accept(accept(&fields)?),
        3 => {
            let (code, text) = fields.reason()?.ok_or(HelloError::Missing(field::REASON))?;
            Message::Reject(Reject { code, text })
        }
        4 => Message::Ready(Ready),
        5 => {
            let (code, text) = fields.reason()?.ok_or(HelloError::Missing(field::REASON))?;
            Message::Fallback(Fallback { code, text })
        }
        6 => Message::Nak(Nak { text: text(field::TEXT, fields.need(field::TEXT)?)? }),
        7 => Message::Ping(u64::from_le_bytes(fields.array(field::ID)?)),
        _ => Message::Pong(u64::from_le_bytes(fields.array(field::ID)?)),
    };
    Ok(Decoded::Message(message, total))
}

fn client_hello(fields: &Fields<'_>) -> Result<ClientHello, HelloError> {
    let (ucx, no_ucx_reason) = (fields.ucx()?, fields.reason()?);
    if ucx.is_some() && no_ucx_reason.is_some() {
        return Err(HelloError::Contradiction(field::UCX, field::REASON));
    }
    let want = match fields.array(field::WANT)? {
        [0] => Want::Auto,
        [1] => Want::Tcp,
        [2] => Want::Ucx,
        [value] => return Err(HelloError::Value { field: field::WANT, value }),
    };
    let (conn, generation) = fields.connection()?;
    let (max_message, max_head) = fields.limits()?;
    Ok(ClientHello {
        want,
        required_features: u64::from_le_bytes(fields.array(field::REQUIRED_FEATURES)?),
        supported_features: u64::from_le_bytes(fields.array(field::SUPPORTED_FEATURES)?),
        process_id: fields.array(field::PROCESS_ID)?,
        conn,
        generation,
        max_message,
        max_head,
        credit: fields.credit()?,
        ucx,
        no_ucx_reason,
        keepalive_ms: u32::from_le_bytes(fields.array(field::KEEPALIVE)?),
        least_endpoint: fields.endpoint()?,
    })
}

fn accept(fields: &Fields<'_>) -> Result<Accept, HelloError> {
    let (ucx, fallback) = (fields.ucx()?, fields.reason()?);
    let transport = match fields.array(field::TRANSPORT)? {
        [2] if ucx.is_none() => return Err(HelloError::Missing(field::UCX)),
        [1] if fields.get(field::ENDPOINT).is_some() => {
            return Err(HelloError::Contradiction(field::TRANSPORT, field::ENDPOINT));
        }
        [2] if fallback.is_some() => return Err(HelloError::Contradiction(field::TRANSPORT, field::REASON)),
        [1] => Transport::Tcp,
        [2] => Transport::Ucx,
        [value] => return Err(HelloError::Value { field: field::TRANSPORT, value }),
    };
    let (conn, generation) = fields.connection()?;
    let (max_message, max_head) = fields.limits()?;
    Ok(Accept {
        transport,
        fallback,
        ucx,
        required_features: u64::from_le_bytes(fields.array(field::REQUIRED_FEATURES)?),
        supported_features: u64::from_le_bytes(fields.array(field::SUPPORTED_FEATURES)?),
        process_id: fields.array(field::PROCESS_ID)?,
        conn,
        generation,
        max_message,
        max_head,
        credit: fields.credit()?,
        keepalive_ms: u32::from_le_bytes(fields.array(field::KEEPALIVE)?),
        endpoint: fields.endpoint()?,
    })
}

fn text(field: u16, bytes: &[u8]) -> Result<String, HelloError> {
    if bytes.len() > MAX_TEXT {
        return Err(HelloError::FieldLength { field, len: bytes.len() });
    }
    str::from_utf8(bytes).map(str::to_owned).map_err(|_| HelloError::NotUtf8(field))
}

/// The values of the fields that we know, by type.
struct Fields<'a>([Option<&'a [u8]>; field::LAST as usize + 1]);

impl<'a> Fields<'a> {
    fn parse(mut bytes: &'a [u8]) -> Result<Self, HelloError> {
        let mut known = [None; field::LAST as usize + 1];
        let mut seen = [0_u16; MAX_FIELDS];
        let mut count = 0;
        while !bytes.is_empty() {
            let (&[t0, t1, l0, l1], rest) = bytes.split_first_chunk().ok_or(HelloError::Truncated)?;
            let field = u16::from_le_bytes([t0, t1]);
            let len = usize::from(u16::from_le_bytes([l0, l1]));
            let (value, rest) = rest.split_at_checked(len).ok_or(HelloError::Truncated)?;
            bytes = rest;
            if seen[..count].contains(&field) {
                return Err(HelloError::Duplicate(field));
            }
            *seen.get_mut(count).ok_or(HelloError::TooManyFields)? = field;
            count += 1;
            match known.get_mut(usize::from(field)) {
                Some(slot) => *slot = Some(value),
                None if field & REQUIRED_FIELD != 0 => return Err(HelloError::RequiredField(field)),
                None => {}
            }
        }
        Ok(Self(known))
    }

    fn get(&self, field: u16) -> Option<&'a [u8]> {
        self.0[usize::from(field)]
    }

    fn need(&self, field: u16) -> Result<&'a [u8], HelloError> {
        self.get(field).ok_or(HelloError::Missing(field))
    }

    fn array<const N: usize>(&self, field: u16) -> Result<[u8; N], HelloError> {
        let value = self.need(field)?;
        value.try_into().map_err(|_| HelloError::FieldLength { field, len: value.len() })
    }

    fn connection(&self) -> Result<(u32, u32), HelloError> {
        let [c0, c1, c2, c3, generation @ ..] = self.array::<8>(field::CONNECTION)?;
        Ok((u32::from_le_bytes([c0, c1, c2, c3]), u32::from_le_bytes(generation)))
    }

    fn limits(&self) -> Result<(u64, u32), HelloError> {
        let [head @ .., h0, h1, h2, h3] = self.array::<12>(field::LIMITS)?;
        Ok((u64::from_le_bytes(head), u32::from_le_bytes([h0, h1, h2, h3])))
    }

    fn credit(&self) -> Result<Credit, HelloError> {
        let [m0, m1, m2, m3, bytes @ ..] = self.array::<12>(field::CREDIT)?;
        Ok(Credit { messages: u32::from_le_bytes([m0, m1, m2, m3]), bytes: u64::from_le_bytes(bytes) })
    }

    fn endpoint(&self) -> Result<Option<u16>, HelloError> {
        self.get(field::ENDPOINT).map(|_| self.array(field::ENDPOINT).map(u16::from_le_bytes)).transpose()
    }

    fn reason(&self) -> Result<Option<(u16, String)>, HelloError> {
        let Some(value) = self.get(field::REASON) else { return Ok(None) };
        let (code, rest) =
            value.split_first_chunk::<2>().ok_or(HelloError::FieldLength { field: field::REASON, len: value.len() })?;
        Ok(Some((u16::from_le_bytes(*code), text(field::REASON, rest)?)))
    }

    fn ucx(&self) -> Result<Option<UcxInfo>, HelloError> {
        let Some(value) = self.get(field::UCX) else { return Ok(None) };
        let wrong = HelloError::FieldLength { field: field::UCX, len: value.len() };
        let (&[a0, a1, b0, b1, c0, c1, f @ .., s0, s1], rest) = value.split_first_chunk::<16>().ok_or(wrong)?;
        let settings_len = usize::from(u16::from_le_bytes([s0, s1]));
        let (settings, worker_address) = rest.split_at_checked(settings_len).ok_or(wrong)?;
        // UCX is given no length with an address and trusts it, so at least the plainly impossible ends here.
        if !(1..=MAX_WORKER_ADDRESS).contains(&worker_address.len()) {
            return Err(wrong);
        }
        Ok(Some(UcxInfo {
            version: (u16::from_le_bytes([a0, a1]), u16::from_le_bytes([b0, b1]), u16::from_le_bytes([c0, c1])),
            fingerprint: u64::from_le_bytes(f),
            settings: text(field::UCX, settings)?,
            worker_address: worker_address.to_vec(),
        }))
    }
}
