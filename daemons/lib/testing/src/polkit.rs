// SPDX-License-Identifier: Apache-2.0
//! A polkit that says what the test says.

use crate::bus::PrivateBus;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use zbus::{Connection, OwnedVariant, interface};

/// What was asked, and what is not allowed. Everything else is.
#[derive(Debug, Default)]
pub struct Inner {
    /// Actions that are denied.
    pub denied: HashSet<String>,
    /// Actions that want a password first.
    pub challenged: HashSet<String>,
    /// Every question so far: the action and its details.
    pub asked: Vec<(String, HashMap<String, String>)>,
}

/// The playing polkit.
#[derive(Debug, Clone)]
pub struct Polkit {
    /// The test's side of it.
    pub inner: Arc<Mutex<Inner>>,
    _connection: Connection,
}

struct Authority(Arc<Mutex<Inner>>);

#[interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Authority {
    fn check_authorization(
        &self,
        _subject: (String, HashMap<String, OwnedVariant>),
        action: String,
        details: HashMap<String, String>,
        _flags: u32,
        _cancellation: String,
    ) -> ((bool, bool, HashMap<String, String>),) {
        let mut inner = self.0.lock().unwrap();
        let challenged = inner.challenged.contains(&action);
        let allowed = !inner.denied.contains(&action) && !challenged;
        inner.asked.push((action, details));
        ((allowed, challenged, HashMap::new()),)
    }
}

impl Polkit {
    /// Takes polkit's name on this bus.
    ///
    /// # Panics
    /// When somebody has it.
    pub async fn new(bus: &PrivateBus) -> Self {
        let inner = Arc::<Mutex<Inner>>::default();
        let connection = bus
            .builder()
            .serve_at("/org/freedesktop/PolicyKit1/Authority", Authority(Arc::clone(&inner)))
            .name("org.freedesktop.PolicyKit1")
            .build()
            .await
            .unwrap();
        Self { inner, _connection: connection }
    }
}
