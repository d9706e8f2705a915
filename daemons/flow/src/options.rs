// SPDX-License-Identifier: Apache-2.0
//! The command line, and the files of the stand-alone mode.

use clap::Parser;
use dstack_core::flow::{Certificate, Config, Instance, Secret, ToFlow};
use dstack_core::ids::InstanceId;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Data plane of the ingress. It is started by dstack-tproxy.service; by hand it serves tests and measurements.
#[derive(Debug, Clone, Parser)]
#[command(name = "dstack-tproxy-flow", version)]
pub struct Options {
    /// Socket of the control plane.
    #[arg(long, default_value = dstack_core::flow::SOCKET)]
    pub control: PathBuf,
    /// Generation, the instance name of the unit.
    #[arg(long, default_value_t = 0)]
    pub generation: u64,
    /// Threads; by default one per core.
    #[arg(long)]
    pub workers: Option<usize>,
    /// Listen here as `ingress`, beside the sockets that systemd passed.
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<SocketAddr>,
    /// Listen here as `passthrough`.
    #[arg(long, value_name = "ADDRESS")]
    pub listen_passthrough: Vec<SocketAddr>,
    /// Listen here as `http`.
    #[arg(long, value_name = "ADDRESS")]
    pub listen_http: Vec<SocketAddr>,
    /// Without control plane: instances, one `ID ADDRESS` per line; the id is the app's too.
    #[arg(long, value_name = "FILE", conflicts_with = "control")]
    pub routes: Option<PathBuf>,
    /// Without control plane: base domain.
    #[arg(long, value_name = "DOMAIN", requires = "routes")]
    pub base: Vec<String>,
    /// Without control plane: certificate chain in PEM, for every name under the base domains.
    #[arg(long, value_name = "FILE", requires_all = ["key", "routes"])]
    pub cert: Option<PathBuf>,
    /// Without control plane: private key in PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
}

/// Why the files of the stand-alone mode cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// A file cannot be read.
    #[error("{0} cannot be read: {1}")]
    Read(PathBuf, std::io::Error),
    /// A line of the routes file.
    #[error("line {1} of {0} is not `ID ADDRESS`: {2:?}")]
    Route(PathBuf, usize, String),
}

fn read(path: &Path) -> Result<String, OptionsError> {
    std::fs::read_to_string(path).map_err(|error| OptionsError::Read(path.to_owned(), error))
}

impl Options {
    /// What a control plane would say; `None` when there is one.
    ///
    /// # Errors
    /// [`OptionsError`] for a file that cannot be used.
    pub fn stand_alone(&self) -> Result<Option<Vec<ToFlow>>, OptionsError> {
        let Some(routes) = &self.routes else { return Ok(None) };
        let config = Config { base_domains: self.base.clone(), ..Config::default() };
        let mut all = vec![ToFlow::Config(config), ToFlow::Routes { instances: parse_routes(routes)? }];
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            let names = self.base.iter().map(|base| format!("*.{base}")).collect();
            let key = Secret::from(read(key)?);
            all.push(ToFlow::Certificates(vec![Certificate { names, chain: read(cert)?, key }]));
        }
        Ok(Some(all))
    }
}

fn parse_routes(path: &Path) -> Result<Vec<Instance>, OptionsError> {
    let route = |(number, line): (usize, &str)| {
        let wrong = || OptionsError::Route(path.to_owned(), number + 1, line.to_owned());
        let (id, address) = line.split_once(' ').ok_or_else(wrong)?;
        let instance_id: InstanceId = id.parse().map_err(|_| wrong())?;
        Ok(Instance {
            instance_id,
            app_id: (*instance_id.as_bytes()).into(),
            address: address.trim().parse().map_err(|_| wrong())?,
            handshake: None,
            port_policy: None,
            proxy_protocol: std::collections::BTreeSet::new(),
            draining: false,
        })
    };
    read(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(route).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn routes_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let id = "07".repeat(20);
        std::fs::write(file.path(), format!("{id} 10.0.0.7\n\n{} fd00::7\n", "08".repeat(20))).unwrap();
        let routes = parse_routes(file.path()).unwrap();
        assert_eq!(routes.iter().map(|i| i.address.to_string()).collect::<Vec<_>>(), ["10.0.0.7", "fd00::7"]);
        for bad in ["07 10.0.0.7", &id, &format!("{id} localhost")] {
            std::fs::write(file.path(), bad).unwrap();
            assert!(matches!(parse_routes(file.path()), Err(OptionsError::Route(_, 1, _))), "{bad}");
        }
    }
}
