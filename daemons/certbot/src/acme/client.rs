// SPDX-License-Identifier: Apache-2.0
//! An authority over the network, by instant-acme.

use super::directory::{self, Directory};
use super::registration::{self, NONCES};
use super::{Acme, AcmeError, BoxFuture, Challenge, ExternalAccount, Refusal, Session, Stage};
use crate::account::Credentials;
use crate::certificate::Leaf;
use crate::http::{self, Http};
use crate::limits::POLL_FIRST;
use crate::names::CertName;
use crate::renewal::Suggested;
use ::http::{Request, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use instant_acme::{
    Account, AuthorizationStatus, BodyWrapper, BytesResponse, CertificateIdentifier, ChallengeType, Error,
    HttpClient, Identifier, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rustls::pki_types::{Der, PrivatePkcs8KeyDer};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

/// An authority.
#[derive(Debug, Clone)]
pub struct Authority {
    http: Http,
    directory: String,
    patience: Duration,
}

impl Authority {
    /// The authority with this directory; it gets `patience` to check what is in DNS, and again to make a certificate.
    #[must_use]
    pub const fn new(http: Http, directory: String, patience: Duration) -> Self {
        Self { http, directory, patience }
    }

    async fn fetch(&self) -> Result<Directory, AcmeError> {
        let answer = self.http.ask(get(&self.directory)?).await?;
        if answer.status != StatusCode::OK {
            return Err(said("its directory", answer.status));
        }
        directory::parse(&answer.body).map_err(|e| AcmeError::Strange(format!("{} {e}", self.directory)))
    }

    async fn suggested(&self, leaf: &Leaf) -> Result<Option<Suggested>, AcmeError> {
        let (Some(url), Some(id)) = (self.fetch().await?.renewal_info, identifier(leaf)) else {
            return Ok(None);
        };
        let answer = self.http.ask(get(&format!("{}/{id}", url.trim_end_matches('/')))?).await?;
        match answer.status {
            StatusCode::OK => {
                let now = http::now();
                let again = http::retry_after(&answer.headers, now);
                directory::parse_suggestion(&answer.body, now, again).map(Some).map_err(AcmeError::Strange)
            }
            // It does not know the certificate: somebody else's.
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Ok(None),
            status => Err(said("renewal information", status)),
        }
    }
}

fn said(what: &'static str, status: StatusCode) -> AcmeError {
    let kind = Refusal::of("", status.as_u16());
    AcmeError::Refused { what, words: format!("status {status}"), kind }
}

fn get(url: &str) -> Result<Request<Bytes>, AcmeError> {
    Request::get(url).body(Bytes::new()).map_err(|e| AcmeError::Strange(e.to_string()))
}

/// `base64url(key identifier of the issuer).base64url(serial number)`, RFC 9773, 4.1.
fn identifier(leaf: &Leaf) -> Option<String> {
    let key = leaf.authority_key.as_ref()?;
    Some(format!("{}.{}", URL_SAFE_NO_PAD.encode(key), URL_SAFE_NO_PAD.encode(&leaf.serial)))
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let this = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
            let whom = parts.uri.host().unwrap_or_default().to_owned();
            let answer =
                this.ask(Request::from_parts(parts, body)).await.map_err(|e| Error::Other(Box::new(e)))?;
            // A page of a gateway in between is no problem document.
            if answer.status.is_server_error() && !is_json(&answer.body) {
                return Err(Error::Other(Box::new(http::HttpError::Trouble(whom, answer.status))));
            }
            let mut response = ::http::Response::new(Full::new(answer.body));
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers;
            Ok(BytesResponse::from(response))
        })
    }
}

fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok()
}

/// What failed, and while doing what.
fn refused(what: &'static str) -> impl Fn(Error) -> AcmeError {
    move |error| match error {
        Error::Api(problem) => AcmeError::Refused { what, words: words(&problem), kind: kind(&problem) },
        Error::Timeout(_) => AcmeError::Slow(what),
        Error::Other(inner) => match inner.downcast::<http::HttpError>() {
            Ok(http) => AcmeError::Http(*http),
            Err(other) => AcmeError::Strange(format!("{what}: {other}")),
        },
        // A server in trouble answers with a page instead of a problem document.
        other => AcmeError::Strange(format!("{what}: {other}")),
    }
}

impl Acme for Authority {
    fn directory(&self) -> BoxFuture<'_, Result<Directory, AcmeError>> {
        Box::pin(self.fetch())
    }

    fn register<'a>(
        &'a self,
        key: &'a [u8],
        external: Option<&'a ExternalAccount>,
    ) -> BoxFuture<'a, Result<String, AcmeError>> {
        Box::pin(async move {
            let directory = self.fetch().await?;
            if directory.external_account_required && external.is_none() {
                return Err(AcmeError::ExternalAccount);
            }
            registration::register(&self.http, &directory, key, external).await
        })
    }

    fn find<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<String, AcmeError>> {
        Box::pin(async move { registration::find(&self.http, &self.fetch().await?, key).await })
    }

    fn log_in<'a>(&'a self, account: &'a Credentials) -> BoxFuture<'a, Result<Box<dyn Session>, AcmeError>> {
        Box::pin(async move {
            let key = PrivatePkcs8KeyDer::from(account.key.as_slice());
            let builder = Account::builder_with_http(Box::new(self.http.clone()));
            let account = builder.from_parts(account.id.clone(), key, account.directory.clone()).await;
            let account = account.map_err(refused("the account"))?;
            let policy = RetryPolicy::new().initial_delay(POLL_FIRST).backoff(1.5).timeout(self.patience);
            Ok(Box::new(LoggedIn { account, order: None, policy }) as Box<dyn Session>)
        })
    }

    fn suggestion<'a>(&'a self, leaf: &'a Leaf) -> BoxFuture<'a, Result<Option<Suggested>, AcmeError>> {
        Box::pin(self.suggested(leaf))
    }

    fn quiet_until(&self) -> Option<i64> {
        self.http.quiet_until()
    }
}

/// instant-acme gives up after three nonces in a row that were rejected, which a busy authority does.
macro_rules! again {
    ($call:expr) => {{
        let mut result = $call;
        for _ in 1..NONCES {
            if !matches!(result, Err(AcmeError::Refused { kind: Refusal::Nonce, .. })) {
                break;
            }
            result = $call;
        }
        result
    }};
}

struct LoggedIn {
    account: Account,
    order: Option<Order>,
    policy: RetryPolicy,
}

impl LoggedIn {
    fn current(&mut self) -> Result<&mut Order, AcmeError> {
        self.order.as_mut().ok_or_else(|| AcmeError::Strange("there is no order; please report this".into()))
    }

    async fn new_order(
        &mut self,
        names: &BTreeSet<CertName>,
        replaces: Option<&Leaf>,
    ) -> Result<String, AcmeError> {
        let identifiers: Vec<Identifier> = names.iter().map(|n| Identifier::Dns(n.to_string())).collect();
        let mut order = NewOrder::new(&identifiers);
        let key = replaces.and_then(|leaf| leaf.authority_key.as_ref().zip(Some(&leaf.serial)));
        if let Some((key, serial)) = key {
            order = order.replaces(CertificateIdentifier::new(Der::from_slice(key), Der::from_slice(serial)));
        }
        let ordered = match self.account.new_order(&order).await {
            // It suggests nothing, or does not know what is replaced, or that was replaced before: order without.
            Err(error) if key.is_some() && is_lasting(&error) => {
                tracing::debug!("the order does not say what it replaces: {error}");
                self.account.new_order(&NewOrder::new(&identifiers)).await
            }
            other => other,
        };
        let order = ordered.map_err(refused("the order"))?;
        let url = order.url().to_owned();
        self.order = Some(order);
        Ok(url)
    }

    async fn stage(&mut self, url: &str) -> Result<Stage, AcmeError> {
        if self.order.as_ref().is_none_or(|order| order.url() != url) {
            self.order = Some(self.account.order(url.to_owned()).await.map_err(refused("the order"))?);
        }
        let order = self.current()?;
        let state = order.state();
        match state.status {
            OrderStatus::Pending => challenges(order).await,
            OrderStatus::Ready => Ok(Stage::Ready),
            OrderStatus::Processing | OrderStatus::Valid => Ok(Stage::Finalized),
            OrderStatus::Invalid => Ok(Stage::Failed(why_failed(order).await)),
        }
    }

    async fn set_ready(&mut self) -> Result<(), AcmeError> {
        let mut authorizations = self.current()?.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(refused("an authorization"))?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let challenge = authorization.challenge(ChallengeType::Dns01);
            let mut challenge = challenge.ok_or_else(no_dns01)?;
            // One by one: a challenge that was accepted may be none any more that can be answered.
            again!(challenge.set_ready().await.map_err(refused("the answer to a challenge")))?;
        }
        Ok(())
    }

    async fn wait_ready(&mut self) -> Result<(), AcmeError> {
        let policy = self.policy;
        let order = self.current()?;
        match again!(order.poll_ready(&policy).await.map_err(refused("looking at DNS"))) {
            Ok(OrderStatus::Invalid) => Err(AcmeError::Failed(why_failed(order).await)),
            other => other.map(drop),
        }
    }
}

/// Another order of the same kind would not go better.
fn is_lasting(error: &Error) -> bool {
    match error {
        Error::Unsupported(_) => true,
        Error::Api(problem) => kind(problem) == Refusal::Lasting,
        _ => false,
    }
}

/// What the authority says, and what to do when it has lost the account: it is never replaced by itself.
fn words(problem: &instant_acme::Problem) -> String {
    let lost = problem.r#type.as_deref().is_some_and(|kind| kind.ends_with(":accountDoesNotExist"));
    let remedy =
        "; to make another account, move credentials.json away (FILES in dstack-certbot(8)) and renew";
    format!("{problem}{}", if lost { remedy } else { "" })
}

fn kind(problem: &instant_acme::Problem) -> Refusal {
    Refusal::of(problem.r#type.as_deref().unwrap_or_default(), problem.status.unwrap_or_default())
}

fn no_dns01() -> AcmeError {
    AcmeError::Strange("it offers no dns-01 challenge for a name".into())
}

async fn challenges(order: &mut Order) -> Result<Stage, AcmeError> {
    let mut found = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(refused("an authorization"))?;
        match authorization.status {
            AuthorizationStatus::Pending => {}
            AuthorizationStatus::Valid => continue,
            status => return Ok(Stage::Failed(format!("an authorization is {status:?}"))),
        }
        let Identifier::Dns(name) = authorization.identifier().identifier.clone() else {
            return Err(AcmeError::Strange("it authorizes what is no name".into()));
        };
        let name = name.parse().map_err(|e| AcmeError::Strange(format!("{e}")))?;
        let challenge = authorization.challenge(ChallengeType::Dns01).ok_or_else(no_dns01)?;
        found.push(Challenge { name, value: challenge.key_authorization().dns_value() });
    }
    Ok(Stage::Pending(found))
}

/// The words are at the challenge that failed, and the order itself has none.
async fn why_failed(order: &mut Order) -> String {
    let mut words = Vec::new();
    if let Some(problem) = &order.state().error {
        words.push(problem.to_string());
    }
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { break };
        let Ok(state) = authorization.refresh().await else { break };
        let errors = state.challenges.iter().filter_map(|c| c.error.as_ref());
        words.extend(errors.map(ToString::to_string));
    }
    if words.is_empty() { "the authority does not say why".to_owned() } else { words.join("; ") }
}

impl Session for LoggedIn {
    fn order<'a>(
        &'a mut self,
        names: &'a BTreeSet<CertName>,
        replaces: Option<&'a Leaf>,
    ) -> BoxFuture<'a, Result<String, AcmeError>> {
        Box::pin(async move { again!(self.new_order(names, replaces).await) })
    }

    fn look<'a>(&'a mut self, url: &'a str) -> BoxFuture<'a, Result<Stage, AcmeError>> {
        Box::pin(async move { again!(self.stage(url).await) })
    }

    fn answer(&mut self) -> BoxFuture<'_, Result<(), AcmeError>> {
        Box::pin(async move {
            self.set_ready().await?;
            self.wait_ready().await
        })
    }

    fn finalize<'a>(&'a mut self, request: &'a [u8]) -> BoxFuture<'a, Result<(), AcmeError>> {
        Box::pin(async move {
            again!(self.current()?.finalize_csr(request).await.map_err(refused("the certificate request")))
        })
    }

    fn chain(&mut self) -> BoxFuture<'_, Result<String, AcmeError>> {
        Box::pin(async move {
            let policy = self.policy;
            again!(self.current()?.poll_certificate(&policy).await.map_err(refused("the certificate")))
        })
    }
}
