// SPDX-License-Identifier: Apache-2.0
//! What teepod says while it works, in the order it says it.

use crate::client::Client;
use crate::errors::Failure;
use dstack_service::api::{kms1, teepod1};
use futures_util::stream::{SelectAll, select_all};
use futures_util::{Stream, StreamExt};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use zbus::{MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, Variant};

/// Signals that may queue up while a call is under way.
const QUEUE: Option<NonZeroUsize> = NonZeroUsize::new(1024);

/// One thing that teepod said.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A job has ended.
    JobRemoved {
        /// The job.
        job: OwnedObjectPath,
        /// `done canceled failed timeout`.
        result: String,
    },
    /// Properties of a job or VM have changed.
    Changed {
        /// The object.
        path: OwnedObjectPath,
        /// The new values, where they came along.
        values: HashMap<String, OwnedVariant>,
    },
    /// A VM is gone.
    VmRemoved(OwnedObjectPath),
    /// The key service refused an app's keys.
    KeyDenied {
        /// The app.
        app: String,
        /// Why, in a sentence with what to do.
        reason: String,
    },
    /// teepod has left the bus: its jobs are gone, its VMs are not.
    Gone,
    /// teepod is on the bus again.
    Back,
}

/// The stream of events. Subscribe before the call whose effects are to be seen.
#[derive(Debug)]
pub struct Events(SelectAll<MessageStream>);

impl Events {
    /// Subscribes to all of teepod's signals, and to what the key service refuses.
    ///
    /// # Errors
    /// When the bus failed.
    pub async fn subscribe(client: &Client) -> Result<Self, Failure> {
        let ours = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender(teepod1::NAME)
            .path_namespace(teepod1::PATH)
            .build()?;
        let owner = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender("org.freedesktop.DBus")
            .member("NameOwnerChanged")
            .arg(0, teepod1::NAME)
            .build()?;
        let denied = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender(kms1::NAME)
            .path(kms1::PATH)
            .member("KeyDenied")
            .build()?;
        let mut streams = Vec::new();
        for rule in [ours, owner, denied] {
            streams.push(MessageStream::for_match_rule(rule, &client.connection, QUEUE).await?);
        }
        Ok(Self(select_all(streams)))
    }

    /// Subscribes to the signals of another daemon and its jobs.
    ///
    /// # Errors
    /// When the bus failed.
    pub async fn of_daemon(client: &Client, name: &'static str, path: &'static str) -> Result<Self, Failure> {
        let ours = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender(name)
            .path_namespace(path)
            .build()?;
        let owner = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender("org.freedesktop.DBus")
            .member("NameOwnerChanged")
            .arg(0, name)
            .build()?;
        let mut streams = Vec::new();
        for rule in [ours, owner] {
            streams.push(MessageStream::for_match_rule(rule, &client.connection, QUEUE).await?);
        }
        Ok(Self(select_all(streams)))
    }

    /// The next event.
    ///
    /// # Errors
    /// When the bus went away.
    pub async fn next(&mut self) -> Result<Event, Failure> {
        next_of(&mut self.0).await
    }
}

async fn next_of(stream: &mut (impl Stream<Item = zbus::Result<Message>> + Unpin)) -> Result<Event, Failure> {
    while let Some(message) = stream.next().await {
        if let Some(event) = parse(&message?) {
            return Ok(event);
        }
    }
    Err(Failure::new("the bus has closed the connection"))
}

/// The event of a signal, if it is one of interest.
#[must_use]
pub fn parse(message: &Message) -> Option<Event> {
    let header = message.header();
    let body = message.body();
    match header.member()?.as_str() {
        "JobRemoved" => {
            let (_, job, result): (u32, OwnedObjectPath, String) = body.deserialize().ok()?;
            Some(Event::JobRemoved { job, result })
        }
        "VmRemoved" => {
            let (_, vm): (String, OwnedObjectPath) = body.deserialize().ok()?;
            Some(Event::VmRemoved(vm))
        }
        "KeyDenied" => {
            let (app, _, reason): (String, String, String) = body.deserialize().ok()?;
            Some(Event::KeyDenied { app, reason })
        }
        "PropertiesChanged" => {
            let (_, values, _): (String, HashMap<String, OwnedVariant>, Vec<String>) =
                body.deserialize().ok()?;
            Some(Event::Changed { path: header.path()?.to_owned().into(), values })
        }
        "NameOwnerChanged" => {
            let (_, _, new): (String, String, String) = body.deserialize().ok()?;
            Some(if new.is_empty() { Event::Gone } else { Event::Back })
        }
        _ => None,
    }
}

/// A changed property that is a text.
#[must_use]
pub fn text<'a>(values: &'a HashMap<String, OwnedVariant>, name: &str) -> Option<&'a str> {
    match &**values.get(name)? {
        Variant::Str(text) => Some(text.as_str()),
        _ => None,
    }
}

/// A changed property that is a number.
#[must_use]
pub fn number(values: &HashMap<String, OwnedVariant>, name: &str) -> Option<f64> {
    match &**values.get(name)? {
        Variant::F64(number) => Some(*number),
        _ => None,
    }
}

/// A job's changed error: name and sentence.
#[must_use]
pub fn error(values: &HashMap<String, OwnedVariant>) -> Option<(String, String)> {
    let value = values.get("Error")?;
    let (name, sentence): (String, String) = value.try_clone().ok()?.try_into().ok()?;
    (!sentence.is_empty()).then_some((name, sentence))
}
