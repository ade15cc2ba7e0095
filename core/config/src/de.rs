//! Typed values out of a [`Node`], with errors that know their place.
//!
//! Serde's errors carry no position, and `erased_serde` turns whatever error type it meets into text. So the
//! place is noted aside: the first deserialiser that an error passes on its way out, which is the innermost,
//! records it in the [`Reader`], where the caller finds it whatever the error itself has become meanwhile.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use crate::diagnostics::Span;
use crate::error::{NodeError, Raised, suggestion};
use crate::node::{Key, Meaning, Node, Scalar, Value, join, shortened};

/// Reads a typed value out of a node and remembers where it failed.
#[derive(Debug)]
pub struct Reader<'n> {
    root: &'n Node,
    path: String,
    failure: RefCell<Option<NodeError>>,
}

impl Node {
    /// Reads a typed value; `path` is this node's own path in its file.
    pub fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, NodeError> {
        let reader = self.reader(path);
        T::deserialize(reader.deserializer()).map_err(|error| reader.explain(error))
    }

    /// For callers that must hand a deserialiser on, possibly erased:
    ///
    /// ```
    /// # use std::path::Path;
    /// let (_, node) = portcullis_config::parse_table(Path::new("x.yaml"), "max_age: soon", &|_| None).unwrap();
    /// let reader = node.reader("plugins[0].cors");
    /// let mut erased = <dyn erased_serde::Deserializer>::erase(reader.deserializer());
    /// let result = erased_serde::deserialize::<std::collections::BTreeMap<String, u32>>(&mut erased);
    /// let error = reader.explain(result.unwrap_err());
    /// assert_eq!(
    ///     error.to_string(),
    ///     "plugins[0].cors.max_age: expected a whole number, 0 or more, found string `soon`"
    /// );
    /// assert_eq!(error.span.column, 10);
    /// ```
    pub fn reader(&self, path: &str) -> Reader<'_> {
        Reader { root: self, path: path.to_owned(), failure: RefCell::new(None) }
    }
}

impl<'n> Reader<'n> {
    /// The deserialiser of the whole node. It may be made and used any number of times.
    pub fn deserializer(&self) -> NodeDeserializer<'_> {
        NodeDeserializer { node: self.root, reader: self }
    }

    /// The located form of an error that came out of [`Reader::deserializer`]. An error that did not pass a
    /// deserialiser (a check after the fact) is placed on the whole node.
    pub fn explain(&self, error: impl fmt::Display) -> NodeError {
        let message = error.to_string();
        self.deserializer().locate(Raised::Message(message.clone()));
        self.failure.borrow().clone().unwrap_or_else(|| NodeError::new(self.root.span, &self.path, message))
    }
}

/// The deserialiser of one node; see [`Node::reader`].
#[derive(Clone, Copy, Debug)]
pub struct NodeDeserializer<'n> {
    node: &'n Node,
    reader: &'n Reader<'n>,
}

impl<'n> NodeDeserializer<'n> {
    /// Notes the place of an error, unless a deserialiser further inside has done so.
    fn locate(self, raised: Raised) -> Raised {
        let mut failure = self.reader.failure.borrow_mut();
        let text = raised.to_string();
        if failure.as_ref().is_some_and(|known| known.message == text) {
            return raised;
        }
        let found = find(self.reader.root, self.node, &self.reader.path).unwrap_or_default();
        let mut error = self.describe(raised, &found);
        error.message = self.node.redact(error.message);
        let passed_on = Raised::Message(error.message.clone());
        *failure = Some(error);
        passed_on
    }

    fn describe(self, raised: Raised, found: &Found) -> NodeError {
        let (path, span) = (found.path.as_str(), self.node.span);
        match raised {
            Raised::MissingField(key) => NodeError::missing_key(found.key.unwrap_or(span), path, key),
            Raised::UnknownField(key, known) => {
                let span = self.node.entry(&key).map_or(span, |(key, _)| key.span);
                NodeError::unknown_key(&Key { text: key, span }, path, known.iter().copied())
            }
            Raised::UnknownVariant(word, known) => {
                let error = NodeError::new(span, path, format!("unknown value `{}`", shortened(&word)));
                match suggestion(&word, known.iter().copied(), "possible values") {
                    Some(help) => error.with_help(help),
                    None => error,
                }
            }
            Raised::Expected { expected, found } => {
                let scalar = matches!(self.node.value, Value::Scalar(_));
                let found = if scalar { self.node.describe() } else { found };
                NodeError::new(span, path, format!("expected {expected}, found {found}"))
            }
            Raised::Message(message) => NodeError::new(span, path, message),
        }
    }

    fn below(self, node: &'n Node) -> Self {
        Self { node, ..self }
    }

    /// Runs a seed on a child and notes the place of its error.
    fn seed<S: DeserializeSeed<'n>>(self, seed: S, child: &'n Node) -> Result<S::Value, Raised> {
        let child = self.below(child);
        seed.deserialize(child).map_err(|error| child.locate(error))
    }

    fn visit_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
        match &self.node.value {
            Value::Scalar(scalar) => visit_meaning(scalar.meaning(), visitor),
            Value::List(items) => {
                let mut items = Items { parent: self, items };
                let value = visitor.visit_seq(&mut items)?;
                match items.items {
                    [] => Ok(value),
                    [extra, ..] => {
                        Err(self.below(extra).locate(Raised::Message("one item too many".to_owned())))
                    }
                }
            }
            Value::Table(entries) => {
                let mut entries = Entries { parent: self, entries, value: None };
                let value = visitor.visit_map(&mut entries)?;
                match entries.entries {
                    [] => Ok(value),
                    [(extra, _), ..] => Err(self.locate(Raised::UnknownField(extra.text.clone(), &[]))),
                }
            }
        }
    }

    /// A text where one is wanted: `port: 8080` then is the text `8080`.
    fn visit_text<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
        match self.node.text() {
            Some(text) => visitor.visit_borrowed_str(text),
            None => self.visit_any(visitor),
        }
    }

    fn visit_typed<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
        match &self.node.value {
            Value::Scalar(scalar) => visit_meaning(scalar.typed_meaning(), visitor),
            _ => self.visit_any(visitor),
        }
    }

    /// A table; a section whose keys are all commented out is an empty one.
    fn visit_table<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
        if self.node.is_null() {
            return visitor.visit_map(&mut Entries { parent: self, entries: &[], value: None });
        }
        if self.node.items().is_some() {
            return Err(de::Error::invalid_type(Unexpected::Seq, &visitor));
        }
        self.visit_any(visitor)
    }

    fn visit_variant<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
        match self.node.entries() {
            Some([(key, content)]) => visitor.visit_enum(Variant { table: self, key, content }),
            Some(_) => Err(Raised::Message("expected a table with exactly one key".to_owned())),
            None => match self.node.text() {
                Some(_) => visitor.visit_enum(Word(self)),
                None => self.visit_any(visitor),
            },
        }
    }
}

fn visit_meaning<'n, V: Visitor<'n>>(meaning: Meaning<'n>, visitor: V) -> Result<V::Value, Raised> {
    match meaning {
        Meaning::Null => visitor.visit_unit(),
        Meaning::Bool(value) => visitor.visit_bool(value),
        Meaning::Unsigned(value) => visitor.visit_u64(value),
        Meaning::Signed(value) => visitor.visit_i64(value),
        Meaning::Float(value) => visitor.visit_f64(value),
        Meaning::Text(text) => visitor.visit_borrowed_str(text),
    }
}

/// The methods of a deserialiser that differ only in how the value is shown to the visitor.
macro_rules! visits {
    ($($show:ident: $($method:ident)*;)*) => {
        $($(fn $method<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
            self.$show(visitor).map_err(|error| self.locate(error))
        })*)*
    };
}

impl<'n> Deserializer<'n> for NodeDeserializer<'n> {
    type Error = Raised;

    visits! {
        visit_any: deserialize_any deserialize_seq deserialize_unit;
        visit_typed: deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
            deserialize_i128 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
            deserialize_f32 deserialize_f64;
        visit_text: deserialize_char deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf
            deserialize_identifier;
        visit_table: deserialize_map;
    }

    fn deserialize_option<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
        let visited = if self.node.is_absent() { visitor.visit_none() } else { visitor.visit_some(self) };
        visited.map_err(|error| self.locate(error))
    }

    fn deserialize_newtype_struct<V: Visitor<'n>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Raised> {
        visitor.visit_newtype_struct(self).map_err(|error| self.locate(error))
    }

    fn deserialize_struct<V: Visitor<'n>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Raised> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'n>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Raised> {
        self.visit_variant(visitor).map_err(|error| self.locate(error))
    }

    fn deserialize_unit_struct<V: Visitor<'n>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Raised> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_tuple<V: Visitor<'n>>(self, _: usize, visitor: V) -> Result<V::Value, Raised> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'n>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Raised> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
        visitor.visit_unit()
    }
}

struct Items<'n> {
    parent: NodeDeserializer<'n>,
    items: &'n [Node],
}

impl<'n> de::SeqAccess<'n> for &mut Items<'n> {
    type Error = Raised;

    fn next_element_seed<S: DeserializeSeed<'n>>(&mut self, seed: S) -> Result<Option<S::Value>, Raised> {
        let Some((item, rest)) = self.items.split_first() else { return Ok(None) };
        self.items = rest;
        self.parent.seed(seed, item).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'n> {
    parent: NodeDeserializer<'n>,
    entries: &'n [(Key, Node)],
    value: Option<&'n Node>,
}

impl<'n> de::MapAccess<'n> for &mut Entries<'n> {
    type Error = Raised;

    fn next_key_seed<S: DeserializeSeed<'n>>(&mut self, seed: S) -> Result<Option<S::Value>, Raised> {
        let Some(((key, value), rest)) = self.entries.split_first() else { return Ok(None) };
        self.entries = rest;
        self.value = Some(value);
        seed.deserialize(KeyDeserializer { table: self.parent, key }).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'n>>(&mut self, seed: S) -> Result<S::Value, Raised> {
        match self.value.take() {
            Some(value) => self.parent.seed(seed, value),
            None => Err(Raised::Message("a value was asked for before its key".to_owned())),
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}

/// A key is a text, unless a number or switch is asked for (a map from status codes).
struct KeyDeserializer<'n> {
    table: NodeDeserializer<'n>,
    key: &'n Key,
}

impl KeyDeserializer<'_> {
    fn locate(&self, raised: Raised) -> Raised {
        let raised = match raised {
            Raised::UnknownField(..) => return self.table.locate(raised),
            Raised::UnknownVariant(word, known) => {
                return self.table.locate(Raised::UnknownField(word, known));
            }
            raised => raised,
        };
        let mut failure = self.table.reader.failure.borrow_mut();
        let text = raised.to_string();
        if failure.as_ref().is_none_or(|known| known.message != text) {
            let found = find(self.table.reader.root, self.table.node, &self.table.reader.path);
            let path = join(&found.unwrap_or_default().path, &self.key.text);
            *failure = Some(NodeError::new(self.key.span, &path, text.clone()));
        }
        Raised::Message(text)
    }

    fn visit_typed<'n, V: Visitor<'n>>(&self, visitor: V) -> Result<V::Value, Raised> {
        let scalar = Scalar { text: self.key.text.clone(), plain: true, env: None };
        match scalar.meaning() {
            Meaning::Bool(value) => visitor.visit_bool(value),
            Meaning::Unsigned(value) => visitor.visit_u64(value),
            Meaning::Signed(value) => visitor.visit_i64(value),
            _ => visitor.visit_str(&self.key.text),
        }
        .map_err(|error| self.locate(error))
    }
}

macro_rules! typed_keys {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
            self.visit_typed(visitor)
        })*
    };
}

impl<'n> Deserializer<'n> for KeyDeserializer<'n> {
    type Error = Raised;

    fn deserialize_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
        visitor.visit_borrowed_str(&self.key.text).map_err(|error| self.locate(error))
    }

    typed_keys! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8
        deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_newtype_struct<V: Visitor<'n>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Raised> {
        let place = KeyDeserializer { ..self };
        visitor.visit_newtype_struct(self).map_err(|error| place.locate(error))
    }

    fn deserialize_enum<V: Visitor<'n>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Raised> {
        visitor.visit_enum(Word(self))
    }

    forward_to_deserialize_any! {
        <V: Visitor<'n>>
        i128 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

/// A bare word, an enum's variant without content.
struct Word<D>(D);

struct NoContent;

impl<'n, D: Deserializer<'n, Error = Raised>> de::EnumAccess<'n> for Word<D> {
    type Error = Raised;
    type Variant = NoContent;

    fn variant_seed<S: DeserializeSeed<'n>>(self, seed: S) -> Result<(S::Value, NoContent), Raised> {
        Ok((seed.deserialize(self.0)?, NoContent))
    }
}

impl NoContent {
    fn error<T>() -> Result<T, Raised> {
        Err(Raised::Message("this word needs a value: write it as a table, `{ word: value }`".to_owned()))
    }
}

impl<'n> de::VariantAccess<'n> for NoContent {
    type Error = Raised;

    fn unit_variant(self) -> Result<(), Raised> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'n>>(self, _: S) -> Result<S::Value, Raised> {
        Self::error()
    }

    fn tuple_variant<V: Visitor<'n>>(self, _: usize, _: V) -> Result<V::Value, Raised> {
        Self::error()
    }

    fn struct_variant<V: Visitor<'n>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Raised> {
        Self::error()
    }
}

/// `{ name: content }`, an enum's variant.
struct Variant<'n> {
    table: NodeDeserializer<'n>,
    key: &'n Key,
    content: &'n Node,
}

impl<'n> de::EnumAccess<'n> for Variant<'n> {
    type Error = Raised;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'n>>(self, seed: S) -> Result<(S::Value, Self), Raised> {
        let variant = seed.deserialize(KeyDeserializer { table: self.table, key: self.key })?;
        Ok((variant, self))
    }
}

impl<'n> de::VariantAccess<'n> for Variant<'n> {
    type Error = Raised;

    fn unit_variant(self) -> Result<(), Raised> {
        self.newtype_variant_seed(std::marker::PhantomData)
    }

    fn newtype_variant_seed<S: DeserializeSeed<'n>>(self, seed: S) -> Result<S::Value, Raised> {
        self.table.seed(seed, self.content)
    }

    fn tuple_variant<V: Visitor<'n>>(self, _: usize, visitor: V) -> Result<V::Value, Raised> {
        self.table.below(self.content).deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'n>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Raised> {
        self.table.below(self.content).deserialize_map(visitor)
    }
}

/// Where a node stands in its tree.
#[derive(Default)]
struct Found {
    path: String,
    key: Option<Span>,
}

/// Looks a node up by identity. Only errors pay for it, and nothing has to carry paths along.
fn find(root: &Node, target: &Node, path: &str) -> Option<Found> {
    if std::ptr::eq(root, target) {
        return Some(Found { path: path.to_owned(), key: None });
    }
    match &root.value {
        Value::Scalar(_) => None,
        Value::List(items) => {
            items.iter().enumerate().find_map(|(index, item)| find(item, target, &format!("{path}[{index}]")))
        }
        Value::Table(entries) => entries.iter().find_map(|(key, value)| {
            let found = find(value, target, &join(path, &key.text))?;
            let own = std::ptr::eq(value, target).then_some(key.span);
            Some(Found { key: own.or(found.key), ..found })
        }),
    }
}

#[cfg(test)]
mod tests;
