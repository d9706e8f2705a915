// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.ctmonitor1.Job`.

dstack_service::job_object!(
    "org.dstack.ctmonitor1.Job",
    "org.dstack.ctmonitor1.Manager",
    "/org/dstack/ctmonitor1"
);
