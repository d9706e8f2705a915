// SPDX-License-Identifier: Apache-2.0
//! Names of images, as Docker reads them. Pure.

/// Docker's own registry.
pub const DOCKER: &str = "docker.io";

/// An image by tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The registry, such as `docker.io` or `registry.lan:5000`.
    pub registry: String,
    /// The repository in it, such as `library/nginx`.
    pub repository: String,
    /// The tag.
    pub tag: String,
}

impl Reference {
    /// Parses a name without digest.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains('$') {
            return Err("it depends on a variable".to_owned());
        }
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (text, "latest"),
        };
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => (DOCKER, name),
        };
        let official = registry == DOCKER && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        if !is_host(registry) || !repository.split('/').all(is_component) || !is_tag(tag) {
            return Err("it is not the name of an image".to_owned());
        }
        Ok(Self { registry: registry.to_owned(), repository, tag: tag.to_owned() })
    }
}

fn is_host(text: &str) -> bool {
    let port = |p: &str| p.parse::<u16>().is_ok();
    let (host, port_fits) = text.rsplit_once(':').map_or((text, true), |(host, p)| (host, port(p)));
    let label = |l: &str| {
        let edge = |c: char| c.is_ascii_alphanumeric();
        l.starts_with(edge) && l.ends_with(edge) && l.chars().all(|c| edge(c) || c == '-')
    };
    port_fits && host.split('.').all(label)
}

fn is_component(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 255
        && !text.contains("..")
        && text.chars().all(inner)
        && text.starts_with(edge)
        && text.ends_with(edge)
}

fn is_tag(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=128).contains(&text.len()) && text.chars().all(inner) && text.starts_with(first)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, registry, repository, tag) in [
            ("nginx", DOCKER, "library/nginx", "latest"),
            ("nginx:1.27", DOCKER, "library/nginx", "1.27"),
            ("me/app:v1", DOCKER, "me/app", "v1"),
            ("docker.io/nginx", DOCKER, "library/nginx", "latest"),
            ("localhost/app", "localhost", "app", "latest"),
            ("registry.lan:5000/a/b/c:x_1", "registry.lan:5000", "a/b/c", "x_1"),
            ("registry.lan:5000/app", "registry.lan:5000", "app", "latest"),
            ("ghcr.io/o/r:main", "ghcr.io", "o/r", "main"),
        ] {
            let expected = Reference {
                registry: registry.to_owned(),
                repository: repository.to_owned(),
                tag: tag.to_owned(),
            };
            assert_eq!(Reference::parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            "A",
            "nginx:",
            "nginx:-x",
            "a//b",
            "../etc",
            "a/../b",
            "r.test:x/a",
            "r.test:99999/a",
            "a b",
            "a?x",
            "a#b",
            "a%2e",
            "evil.test/a:b\r\nHost: c",
            "nginx:${TAG}",
            "$IMAGE",
            "user@evil.test/a",
            &"a".repeat(300),
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }
}
