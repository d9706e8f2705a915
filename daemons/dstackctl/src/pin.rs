// SPDX-License-Identifier: Apache-2.0
//! Images by digest (trust rule T5): each tag of a compose file is replaced by the digest that its registry gives now.

pub mod reference;
pub mod registry;

use crate::errors::Failure;
use reference::Reference;
use registry::Registries;
use serde_json::Value;
use std::collections::BTreeMap;

/// Most images of a compose file that are asked for.
const IMAGES_MAX: usize = 128;

/// An image that was pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// As the file had it.
    pub tag: String,
    /// As it has it now.
    pub digest: String,
}

/// A compose file with digests for tags, and what was changed.
///
/// # Errors
/// When a registry cannot be asked, or an image is written in a way that cannot be replaced.
pub async fn pin(text: &str, registries: &Registries) -> Result<(String, Vec<Pinned>), Failure> {
    let mut pinned = Vec::new();
    for tag in unpinned(text) {
        let reference = Reference::parse(&tag).map_err(|why| cannot(&tag, &why))?;
        let digest = registries.digest(&reference).await.map_err(|why| cannot(&tag, &why))?;
        pinned.push(Pinned { digest: format!("{tag}@{digest}"), tag });
    }
    Ok((replace(text, &pinned)?, pinned))
}

fn cannot(tag: &str, why: &str) -> Failure {
    Failure::new(format!("image {tag} cannot be pinned to a digest: {why}")).hint(
        "write image: NAME@sha256:… yourself, or give --allow-tags: then whoever has the registry decides what runs",
    )
}

/// The images of a compose file that are named by tag, each once, in the order of the services.
#[must_use]
pub fn unpinned(text: &str) -> Vec<String> {
    let mut images = Vec::new();
    let all = parse(text).as_ref().map(images_of).unwrap_or_default();
    for image in all.into_values().filter(|image| !image.contains("@sha256:")).take(IMAGES_MAX) {
        if !images.contains(&image) {
            images.push(image);
        }
    }
    images
}

fn parse(text: &str) -> Option<Value> {
    serde_saphyr::from_str(text).ok()
}

fn images_of(file: &Value) -> BTreeMap<String, String> {
    let services = file.get("services").and_then(Value::as_object).into_iter().flatten();
    let image =
        |(name, service): (&String, &Value)| Some((name.clone(), service.get("image")?.as_str()?.to_owned()));
    services.filter_map(image).collect()
}

/// Replaces images in the text, which otherwise stays byte for byte, and checks by parsing that nothing else changed.
fn replace(text: &str, pinned: &[Pinned]) -> Result<String, Failure> {
    let mut out = text.to_owned();
    for Pinned { tag, digest } in pinned {
        out = replace_one(&out, tag, digest);
    }
    let mut expected = parse(text);
    if let Some(services) =
        expected.as_mut().and_then(|f| f.get_mut("services")).and_then(Value::as_object_mut)
    {
        let images = services.values_mut().filter_map(|s| s.get_mut("image"));
        for image in images {
            if let Some(found) = pinned.iter().find(|p| image.as_str() == Some(&p.tag)) {
                *image = found.digest.clone().into();
            }
        }
    }
    if parse(&out) == expected {
        return Ok(out);
    }
    let tags: Vec<&str> = pinned.iter().map(|p| p.tag.as_str()).collect();
    Err(cannot(&tags.join(", "), "the file names it in a way that cannot be replaced, such as by an anchor"))
}

/// Replaces the value of each `image:` that is exactly this one.
fn replace_one(text: &str, tag: &str, digest: &str) -> String {
    let mut out = String::with_capacity(text.len() + digest.len());
    let mut rest = text;
    while let Some(at) = rest.find(tag) {
        let (before, from) = rest.split_at_checked(at).unwrap_or((rest, ""));
        let after = from.get(tag.len()..).unwrap_or_default();
        out.push_str(before);
        out.push_str(if is_image(before, after) { digest } else { tag });
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Whether what stands between these is the whole value of an `image` key.
fn is_image(before: &str, after: &str) -> bool {
    let opened = before.trim_end_matches(['"', '\'']);
    let key = opened.trim_end_matches([' ', '\t']);
    let named = ["image:", "\"image\":", "'image':"].into_iter().any(|k| key.ends_with(k));
    named && after.chars().next().is_none_or(|c| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | '}'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn to_digest(tag: &str) -> Pinned {
        Pinned { tag: tag.to_owned(), digest: format!("{tag}@sha256:{}", "ab".repeat(32)) }
    }

    #[test]
    fn t05_only_images_change_and_every_other_byte_stays() {
        for (text, tags) in [
            (
                "services:\n  a:\n    image: nginx\n  b:\n    image: nginx:1 # web\n",
                &["nginx", "nginx:1"][..],
            ),
            (
                "services:\n  a:\n    image: \"r.test:5000/a/b:1\"\r\n    labels: [nginx]\r\n",
                &["r.test:5000/a/b:1"],
            ),
            ("services: {a: {image: 'b:1'}, c: {\"image\": \"b:1\", command: 'b:1'}}", &["b:1"]),
            ("services:\n  a:\n    image:   busybox\n    command: echo busybox\n", &["busybox"]),
        ] {
            assert_eq!(unpinned(text), tags, "{text}");
            let pinned: Vec<Pinned> = tags.iter().map(|t| to_digest(t)).collect();
            let out = replace(text, &pinned).unwrap();
            assert!(unpinned(&out).is_empty(), "{out}");
            let back = pinned.iter().fold(out, |out, p| out.replace(&p.digest, &p.tag));
            assert_eq!(back, text);
        }
    }

    #[test]
    fn t05_what_cannot_be_replaced_is_refused() {
        for text in [
            "x: &i nginx\nservices:\n  a:\n    image: *i\n",
            "services:\n  a:\n    image: >-\n      nginx\n",
            "services:\n  a:\n    image: nginx\n  b:\n    command: ['image: nginx']\n",
        ] {
            let failure = replace(text, &[to_digest("nginx")]).unwrap_err();
            assert!(failure.hint.is_some_and(|h| h.contains("--allow-tags")), "{text}");
        }
    }

    #[test]
    fn pinned_images_are_left_alone() {
        let text = format!("services:\n  a:\n    image: nginx:1@sha256:{}\n", "ab".repeat(32));
        assert!(unpinned(&text).is_empty());
        assert_eq!(replace(&text, &[]).unwrap(), text);
        assert!(unpinned("services: {a: {build: .}}").is_empty() && unpinned("[").is_empty());
    }
}
