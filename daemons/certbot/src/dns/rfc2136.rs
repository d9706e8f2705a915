// SPDX-License-Identifier: Apache-2.0
//! Dynamic updates (RFC 2136), signed by TSIG (RFC 8945).

use super::wire::{self, Told};
use super::{Data, DnsError, Kind, Provider, authority};
use crate::acme::BoxFuture;
use crate::limits::TTL;
use crate::names::DnsName;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_proto::rr::{DNSClass, Name, Record, RecordType, TSigner};
use std::net::SocketAddr;

/// How far the clocks of server and client may be apart, seconds.
const FUDGE: u16 = 300;

/// A key that the server knows.
#[derive(Clone)]
pub struct Key {
    /// Its name.
    pub name: String,
    /// Which digest.
    pub algorithm: Algorithm,
    /// The secret.
    pub secret: zeroize::Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("name", &self.name)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// Digests of TSIG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// hmac-sha256
    Sha256,
    /// hmac-sha384
    Sha384,
    /// hmac-sha512
    Sha512,
}

/// A server that takes updates.
#[derive(Clone)]
pub struct Rfc2136 {
    server: SocketAddr,
    zone: Option<DnsName>,
    signer: TSigner,
}

impl std::fmt::Debug for Rfc2136 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rfc2136")
            .field("server", &self.server)
            .field("zone", &self.zone)
            .finish_non_exhaustive()
    }
}

impl Rfc2136 {
    /// Updates at this server; without a zone it is asked for.
    ///
    /// # Errors
    /// A sentence, when the key has no name of DNS.
    pub fn new(server: SocketAddr, zone: Option<DnsName>, key: &Key) -> Result<Self, String> {
        let algorithm = match key.algorithm {
            Algorithm::Sha256 => TsigAlgorithm::HmacSha256,
            Algorithm::Sha384 => TsigAlgorithm::HmacSha384,
            Algorithm::Sha512 => TsigAlgorithm::HmacSha512,
        };
        let name =
            Name::from_ascii(&key.name).map_err(|e| format!("{:?} is no name of a key: {e}", key.name))?;
        let signer = TSigner::new(key.secret.to_vec(), algorithm, name, FUDGE).map_err(|e| e.to_string())?;
        Ok(Self { server, zone, signer })
    }

    async fn zone(&self, name: &DnsName) -> Result<DnsName, DnsError> {
        match &self.zone {
            Some(zone) if name.is_in(zone) => Ok(zone.clone()),
            Some(zone) => {
                Err(DnsError::NoZone(name.clone(), format!("it is not in {zone}, the zone of certbot.toml")))
            }
            None => authority::zone_at(self.server, name).await,
        }
    }

    async fn update(&self, name: &DnsName, record: Record) -> Result<(), DnsError> {
        let zone = self.zone(name).await?;
        let mut message = Message::new(wire::random_id()?, MessageType::Query, OpCode::Update);
        message.add_query(Query::query(wire::wire_name(&zone)?, RecordType::SOA));
        message.add_authority(record);
        let now = u64::try_from(crate::http::now()).unwrap_or_default();
        let verifier = message
            .finalize(&self.signer, now)
            .map_err(|e| self.refused(format!("the update cannot be signed: {e}")))?;
        let bytes = message.to_vec().map_err(|e| self.refused(e.to_string()))?;
        let answer = wire::exchange(self.server, &bytes).await?;
        let plain =
            Message::from_vec(&answer).map_err(|e| self.refused(format!("its answer is no message: {e}")))?;
        let code = plain.metadata.response_code;
        // A refusal of the key cannot be signed by the key.
        if code == ResponseCode::NoError && plain.metadata.id == message.metadata.id {
            let verified = verifier.map(|mut verifier| verifier.verify(&answer));
            return match verified {
                Some(Ok(_)) => Ok(()),
                Some(Err(e)) => Err(self.refused(format!("its answer is not signed by the key: {e}"))),
                None => Err(self.refused("its answer cannot be checked".into())),
            };
        }
        Err(self.refused(words(code, &self.signer, &zone)))
    }

    fn refused(&self, reason: String) -> DnsError {
        DnsError::Refused { server: self.server.to_string(), reason }
    }

    async fn read(&self, name: &DnsName, kind: Kind) -> Result<Vec<Data>, DnsError> {
        let answer = wire::ask(self.server, &wire::question(name, wire::record_type(kind))?).await?;
        match wire::read(&wire::wire_name(name)?, kind, &answer) {
            Told::Records(records) => Ok(records),
            Told::Alias => Err(DnsError::Alias(name.clone(), kind.word())),
            Told::Nothing(reason) => {
                Err(self.refused(format!("{reason}, when asked for {} of {name}", kind.word())))
            }
        }
    }
}

/// What a code means here.
fn words(code: ResponseCode, signer: &TSigner, zone: &DnsName) -> String {
    let key = signer.signer_name();
    match code {
        ResponseCode::NotAuth | ResponseCode::BADSIG | ResponseCode::BADKEY => format!(
            "{code}: it does not know the key {key}, or its secret or algorithm is another one; \
             see key_name and algorithm in [dns.rfc2136] of certbot.toml and the credential certbot-tsig"
        ),
        ResponseCode::BADTIME => format!("{code}: its clock and ours are more than {FUDGE} s apart"),
        ResponseCode::Refused => format!(
            "{code}: the key {key} may not change TXT and CAA records of {zone}; allow it at the server"
        ),
        ResponseCode::NotZone => {
            format!("{code}: it has no zone {zone}; set zone in [dns.rfc2136] of certbot.toml")
        }
        code => format!("{code}, for an update of {zone}"),
    }
}

impl Provider for Rfc2136 {
    fn list<'a>(&'a self, name: &'a DnsName, kind: Kind) -> BoxFuture<'a, Result<Vec<Data>, DnsError>> {
        Box::pin(self.read(name, kind))
    }

    fn add<'a>(&'a self, name: &'a DnsName, data: &'a Data) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(async move {
            let record = wire::record(wire::wire_name(name)?, TTL, data);
            self.update(name, record).await
        })
    }

    /// RFC 2136, 2.5.4: one record of a set, by class NONE and lifetime 0.
    fn remove<'a>(&'a self, name: &'a DnsName, data: &'a Data) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(async move {
            let mut record = wire::record(wire::wire_name(name)?, 0, data);
            record.dns_class = DNSClass::NONE;
            self.update(name, record).await
        })
    }
}
