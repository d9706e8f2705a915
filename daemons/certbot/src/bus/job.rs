// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.certbot1.Job`.

dstack_service::job_object!("org.dstack.certbot1.Job", "org.dstack.certbot1.Manager", "/org/dstack/certbot1");
