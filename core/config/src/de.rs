//! Typed values out of a [`Node`], with errors that know their place.
//!
//! Serde's errors carry no position, and `erased_serde` turns whatever error type it meets into text. So the
//! place is noted aside: the first deserialiser that an error passes on its way out, which is the innermost,
//! records it in the [`Reader`], where the caller finds it whatever the error itself has become meanwhile.

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer as _, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use crate::blank::Blank;
use crate::diagnostics::Span;
use crate::error::{NodeError, Raised, suggestion};
use crate::node::{Key, Meaning, Node, Scalar, Value, join, shortened};
use crate::reader::{Failure, Fault, Reader};

/// The deserialiser of one node; see [`Node::reader`].
#[derive(Clone, Copy, Debug)]
pub struct NodeDeserializer<'n> {
    node: &'n Node,
    reader: &'n Reader<'n>,
}

impl<'n> NodeDeserializer<'n> {
    pub(crate) fn new(node: &'n Node, reader: &'n Reader<'n>) -> Self {
        Self { node, reader }
    }

    /// Every way out: an error gets its place, and a value of an attempt that only looks for more errors is none.
    fn out<T>(self, result: Result<T, Raised>) -> Result<T, Raised> {
        match result {
            Ok(_) if self.reader.rehearses(self.node) => {
                Err(self.locate(Raised::Message("it has errors".to_owned())))
            }
            result => result.map_err(|error| self.locate(error)),
        }
    }

    /// Notes the place of an error, unless a deserialiser further inside has done so.
    fn locate(self, raised: Raised) -> Raised {
        if self.reader.knows(&raised.to_string()) {
            return raised;
        }
        let fault = match &raised {
            Raised::UnknownField(key, _) => {
                self.node.child(key).map_or(Fault::Wrong, |value| Fault::UnknownKey(value))
            }
            Raised::MissingField(key) => Fault::MissingKey(key),
            _ => Fault::Wrong,
        };
        let (path, key) = self.place();
        let mut error = self.describe(raised, &path, key);
        error.message = self.node.redact(error.message);
        let passed_on = Raised::Message(error.message.clone());
        self.reader.fail(Failure { error, node: self.node, fault });
        passed_on
    }

    /// The node's path, and its key in a table.
    fn place(self) -> (String, Option<Span>) {
        self.reader.find(self.node).map(|found| (found.path, found.key)).unwrap_or_default()
    }

    fn describe(self, raised: Raised, path: &str, key: Option<Span>) -> NodeError {
        let span = self.node.span;
        match raised {
            Raised::MissingField(missing) => NodeError::missing_key(key.unwrap_or(span), path, missing),
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
            // The name of a Rust type means nothing to the file's author.
            Raised::Message(message) if message.starts_with(UNTAGGED) => {
                let message = format!("{} is none of the forms that are possible here", self.node.describe());
                NodeError::new(span, path, message)
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
                match items.next() {
                    None => Ok(value),
                    Some(extra) => {
                        Err(self.below(extra).locate(Raised::Message("one item too many".to_owned())))
                    }
                }
            }
            Value::Table(entries) => self.visit_entries(entries, visitor),
            Value::Unset => Err(Raised::Message("nothing is known of it".to_owned())),
        }
    }

    fn visit_entries<V: Visitor<'n>>(
        self,
        entries: &'n [(Key, Node)],
        visitor: V,
    ) -> Result<V::Value, Raised> {
        let made_up = self.reader.made_up(self.node).into_iter();
        let mut entries = Entries { parent: self, entries, made_up, value: None };
        let value = visitor.visit_map(&mut entries)?;
        match entries.next() {
            None => Ok(value),
            // A type that leaves entries unread is an enum, of which one is chosen.
            Some(_) => Err(Raised::Message(ONE_KEY.to_owned())),
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
            return self.visit_entries(&[], visitor);
        }
        if self.node.items().is_some() {
            return Err(de::Error::invalid_type(Unexpected::Seq, &visitor));
        }
        self.visit_any(visitor)
    }

    fn visit_variant<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
        match self.node.entries() {
            Some([(key, content)]) if !self.reader.lacks(content) => {
                visitor.visit_enum(Variant { table: self, key, content })
            }
            Some(_) => Err(Raised::Message(ONE_KEY.to_owned())),
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
            self.out(self.$show(visitor))
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
        self.out(visited)
    }

    fn deserialize_newtype_struct<V: Visitor<'n>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Raised> {
        self.out(visitor.visit_newtype_struct(self))
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
        self.out(self.visit_variant(visitor))
    }

    fn deserialize_unit_struct<V: Visitor<'n>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Raised> {
        self.deserialize_unit(visitor)
    }

    /// Each item has a place of its own: without one of them nothing can be said of the others.
    fn deserialize_tuple<V: Visitor<'n>>(self, _: usize, visitor: V) -> Result<V::Value, Raised> {
        match self.node.items().unwrap_or_default().iter().any(|item| self.reader.lacks(item)) {
            true => self.out(Err(Raised::Message("an item is missing".to_owned()))),
            false => self.deserialize_seq(visitor),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'n>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Raised> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
        visitor.visit_unit()
    }
}

/// How serde begins when it has tried every form of a value.
const UNTAGGED: &str = "data did not match any variant of untagged enum";

/// What an enum's table must be.
const ONE_KEY: &str = "expected a table with exactly one key";

struct Items<'n> {
    parent: NodeDeserializer<'n>,
    items: &'n [Node],
}

impl<'n> Items<'n> {
    fn next(&mut self) -> Option<&'n Node> {
        let at = self.items.iter().position(|item| !self.parent.reader.lacks(item))?;
        let (_, rest) = self.items.split_at(at);
        let (item, rest) = rest.split_first()?;
        self.items = rest;
        Some(item)
    }
}

impl<'n> de::SeqAccess<'n> for &mut Items<'n> {
    type Error = Raised;

    fn next_element_seed<S: DeserializeSeed<'n>>(&mut self, seed: S) -> Result<Option<S::Value>, Raised> {
        self.next().map(|item| self.parent.seed(seed, item)).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

/// The entries of a table, then those that are made up.
struct Entries<'n> {
    parent: NodeDeserializer<'n>,
    entries: &'n [(Key, Node)],
    made_up: std::vec::IntoIter<&'static str>,
    value: Option<Content<'n>>,
}

enum Content<'n> {
    Node(&'n Node),
    MadeUp,
}

impl<'n> Entries<'n> {
    fn next(&mut self) -> Option<&'n (Key, Node)> {
        let at = self.entries.iter().position(|(_, value)| !self.parent.reader.lacks(value))?;
        let (_, rest) = self.entries.split_at(at);
        let (entry, rest) = rest.split_first()?;
        self.entries = rest;
        Some(entry)
    }

    fn cannot_make_up(&self, raised: &Raised) -> Raised {
        let (text, node) = (raised.to_string(), self.parent.node);
        let error = NodeError::new(node.span, "", text.clone());
        self.parent.reader.fail(Failure { error, node, fault: Fault::NotMadeUp });
        Raised::Message(text)
    }
}

impl<'n> de::MapAccess<'n> for &mut Entries<'n> {
    type Error = Raised;

    fn next_key_seed<S: DeserializeSeed<'n>>(&mut self, seed: S) -> Result<Option<S::Value>, Raised> {
        if let Some((key, value)) = self.next() {
            self.value = Some(Content::Node(value));
            return seed.deserialize(KeyDeserializer { table: self.parent, key }).map(Some);
        }
        let Some(key) = self.made_up.next() else { return Ok(None) };
        self.value = Some(Content::MadeUp);
        let key: StrDeserializer<'_, Raised> = key.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'n>>(&mut self, seed: S) -> Result<S::Value, Raised> {
        match self.value.take() {
            Some(Content::Node(value)) => self.parent.seed(seed, value),
            Some(Content::MadeUp) => seed.deserialize(Blank).map_err(|error| self.cannot_make_up(&error)),
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
        let text = raised.to_string();
        if !self.table.reader.knows(&text) {
            let (path, _) = self.table.place();
            let error = NodeError::new(self.key.span, &join(&path, &self.key.text), text.clone());
            let node = self.table.node.child(&self.key.text).unwrap_or(self.table.node);
            self.table.reader.fail(Failure { error, node, fault: Fault::Wrong });
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

    fn tuple_variant<V: Visitor<'n>>(self, length: usize, visitor: V) -> Result<V::Value, Raised> {
        self.table.below(self.content).deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'n>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Raised> {
        self.table.below(self.content).deserialize_map(visitor)
    }
}

#[cfg(test)]
mod tests;
