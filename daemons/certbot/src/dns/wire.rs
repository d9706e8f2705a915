// SPDX-License-Identifier: Apache-2.0
//! Questions and updates to one DNS server. Reading answers is pure.

use super::{Data, DnsError, Kind};
use crate::caa::Caa;
use crate::limits::{MESSAGE_MAX, QUESTION, RECORDS_MAX};
use crate::names::DnsName;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{CAA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Largest answer by UDP; larger ones come by TCP.
const UDP_MAX: u16 = 1_232;

fn unheard(server: SocketAddr, reason: impl std::fmt::Display) -> DnsError {
    DnsError::Server { server: server.to_string(), reason: reason.to_string() }
}

/// As DNS has it.
///
/// # Errors
/// [`DnsError::NoZone`]; a checked name always is one.
pub fn wire_name(name: &DnsName) -> Result<Name, DnsError> {
    Name::from_ascii(format!("{name}.")).map_err(|e| DnsError::NoZone(name.clone(), e.to_string()))
}

/// A question for records of a name, without recursion.
///
/// # Errors
/// [`DnsError`].
pub fn question(name: &DnsName, kind: RecordType) -> Result<Message, DnsError> {
    let mut message = Message::new(random_id()?, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(wire_name(name)?, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_MAX);
    message.set_edns(edns);
    Ok(message)
}

/// A number for a message.
///
/// # Errors
/// Without randomness.
pub fn random_id() -> Result<u16, DnsError> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(|e| DnsError::Server {
        server: "of any kind".into(),
        reason: format!("there is no randomness: {e}"),
    })?;
    Ok(u16::from_ne_bytes(id))
}

/// Asks one server: by UDP, and by TCP when the answer does not fit or none comes.
///
/// # Errors
/// [`DnsError::Server`].
pub async fn ask(server: SocketAddr, message: &Message) -> Result<Message, DnsError> {
    let bytes = message.to_vec().map_err(|e| unheard(server, e))?;
    let by_udp = timeout(QUESTION / 2, udp(server, &bytes)).await;
    if let Ok(Ok(answer)) = by_udp
        && let Some(answer) = accept(message, &answer)
        && !answer.metadata.truncation
    {
        return Ok(answer);
    }
    let answer = exchange(server, &bytes).await?;
    accept(message, &answer).ok_or_else(|| unheard(server, "its answer is not to what was asked"))
}

/// The bytes of an answer by TCP.
///
/// # Errors
/// [`DnsError::Server`].
pub async fn exchange(server: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, DnsError> {
    let answer = timeout(QUESTION, tcp(server, bytes)).await;
    answer
        .map_err(|_| unheard(server, format!("does not answer within {} s", QUESTION.as_secs())))?
        .map_err(|e| unheard(server, e))
}

async fn udp(server: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut answer = vec![0; usize::from(UDP_MAX)];
    let read = socket.recv(&mut answer).await?;
    answer.truncate(read);
    Ok(answer)
}

async fn tcp(server: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(|_| std::io::Error::other("the message is too large"))?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?).min(MESSAGE_MAX)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// The answer to a question; `None` for anything else that came.
#[must_use]
pub fn accept(question: &Message, answer: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(answer).ok()?;
    let is_it = answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == question.queries;
    is_it.then_some(answer)
}

/// What an answer says about a name. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// These records, maybe none.
    Records(Vec<Data>),
    /// The name stands for another one.
    Alias,
    /// The server does not tell; why.
    Nothing(String),
}

/// Reads the records of a kind from an answer of an authoritative server.
#[must_use]
pub fn read(name: &Name, kind: Kind, answer: &Message) -> Told {
    match answer.metadata.response_code {
        ResponseCode::NoError if !answer.metadata.authoritative => {
            return Told::Nothing("it is no server of the zone".into());
        }
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        code => return Told::Nothing(code.to_string()),
    }
    let mut found = Vec::new();
    for record in answer.answers.iter().filter(|r| r.name == *name).take(RECORDS_MAX) {
        match (&record.data, kind) {
            (RData::CNAME(_), _) => return Told::Alias,
            (RData::TXT(txt), Kind::Txt) => found.push(Data::Txt(joined(txt))),
            (RData::CAA(caa), Kind::Caa) => found.push(Data::Caa(Caa {
                flags: caa.flags(),
                tag: caa.tag.to_ascii_lowercase(),
                value: String::from_utf8_lossy(&caa.value).into_owned(),
            })),
            _ => {}
        }
    }
    Told::Records(found)
}

fn joined(txt: &TXT) -> String {
    let bytes: Vec<u8> = txt.txt_data.iter().flat_map(|part| part.iter().copied()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// As DNS has it.
#[must_use]
pub fn rdata(data: &Data) -> RData {
    match data {
        Data::Txt(text) => RData::TXT(TXT::from_bytes(text.as_bytes().chunks(255).collect())),
        Data::Caa(caa) => {
            let mut rdata = CAA::new_issue(caa.flags & 0x80 != 0, None, Vec::new());
            rdata.reserved_flags = caa.flags & 0x7f;
            rdata.tag.clone_from(&caa.tag);
            rdata.value = caa.value.clone().into_bytes();
            RData::CAA(rdata)
        }
    }
}

/// What the header of an answer says.
pub const RESPONSE: MessageType = MessageType::Response;

/// A record.
#[must_use]
pub fn record(name: Name, ttl: u32, data: &Data) -> Record {
    Record::from_rdata(name, ttl, rdata(data))
}

/// The type of a kind.
#[must_use]
pub const fn record_type(kind: Kind) -> RecordType {
    match kind {
        Kind::Txt => RecordType::TXT,
        Kind::Caa => RecordType::CAA,
    }
}
