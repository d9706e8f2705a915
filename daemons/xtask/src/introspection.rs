// SPDX-License-Identifier: Apache-2.0
//! Reads the introspection XML that our own daemons print: one element per line, the documentation in comments.

/// One argument of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// Its name.
    pub name: String,
    /// Its D-Bus signature.
    pub signature: String,
    /// Whether a method returns it.
    pub out: bool,
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A method.
    Method,
    /// A signal.
    Signal,
    /// A property.
    Property,
}

/// A method, signal or property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its documentation, one paragraph; empty when there is none.
    pub doc: String,
    /// A property's signature, empty for others.
    pub signature: String,
    /// A property's access, empty for others.
    pub access: String,
    /// Value of the annotation `EmitsChangedSignal`, empty when there is none.
    pub emits: String,
    /// Arguments of methods and signals.
    pub args: Vec<Arg>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its members in the order of the document.
    pub members: Vec<Member>,
}

/// All interfaces of a document.
pub fn parse(xml: &str) -> Vec<Interface> {
    let mut interfaces: Vec<Interface> = Vec::new();
    let (mut doc, mut in_comment) = (String::new(), false);
    for line in xml.lines().map(str::trim) {
        if in_comment || line.starts_with("<!--") {
            in_comment = !line.contains("-->");
            let text = line.trim_start_matches("<!--").trim_end_matches("-->").trim();
            if !text.is_empty() {
                doc.push_str(if doc.is_empty() { "" } else { " " });
                doc.push_str(&unescape(text));
            }
            continue;
        }
        if let Some(name) = line.strip_prefix("<interface").and_then(|l| attribute(l, "name")) {
            interfaces.push(Interface { name, members: Vec::new() });
            doc.clear();
        } else if let Some(interface) = interfaces.last_mut() {
            element(line, &mut interface.members, &mut doc);
        }
    }
    interfaces
}

fn element(line: &str, members: &mut Vec<Member>, doc: &mut String) {
    let kinds = [("<method ", Kind::Method), ("<signal ", Kind::Signal), ("<property ", Kind::Property)];
    if let Some((_, kind)) = kinds.into_iter().find(|(tag, _)| line.starts_with(tag)) {
        let get = |name| attribute(line, name).unwrap_or_default();
        members.push(Member {
            kind,
            name: get("name"),
            doc: std::mem::take(doc),
            signature: get("type"),
            access: get("access"),
            emits: String::new(),
            args: Vec::new(),
        });
    } else if let Some(member) = members.last_mut() {
        if line.starts_with("<arg ") {
            let get = |name| attribute(line, name).unwrap_or_default();
            member.args.push(Arg {
                name: get("name"),
                signature: get("type"),
                out: get("direction") == "out",
            });
        } else if line.contains("EmitsChangedSignal") {
            member.emits = attribute(line, "value").unwrap_or_default();
        }
    }
}

fn attribute(line: &str, name: &str) -> Option<String> {
    let (_, rest) = line.split_once(&format!(" {name}=\""))?;
    rest.split_once('"').map(|(value, _)| unescape(value))
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = r#"<node>
  <interface name="org.example.A">
    <!--
     Does a thing,
     twice.
     -->
    <method name="Do">
      <arg name="what" type="a{sv}" direction="in"/>
      <arg name="job" type="o" direction="out"/>
    </method>
    <signal name="Done">
      <arg name="id" type="u"/>
    </signal>
    <!-- How many. -->
    <property name="Count" type="u" access="read">
      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="const"/>
    </property>
  </interface>
</node>"#;

    #[test]
    fn members_and_their_documentation() {
        let interfaces = parse(XML);
        let members = &interfaces.first().unwrap().members;
        let seen: Vec<_> = members.iter().map(|m| (m.kind, m.name.as_str(), m.doc.as_str())).collect();
        assert_eq!(
            seen,
            [
                (Kind::Method, "Do", "Does a thing, twice."),
                (Kind::Signal, "Done", ""),
                (Kind::Property, "Count", "How many."),
            ]
        );
        let method = members.first().unwrap();
        assert_eq!(method.args.iter().map(|a| a.out).collect::<Vec<_>>(), [false, true]);
        assert_eq!(members.last().unwrap().emits, "const");
    }
}
