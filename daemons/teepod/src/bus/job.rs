// SPDX-License-Identifier: Apache-2.0
//! Jobs on the bus.

dstack_service::job_object!("org.dstack.teepod1.Job", "org.dstack.teepod1.Manager", "/org/dstack/teepod1");
