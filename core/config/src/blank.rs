//! A value that is made up for a missing key, so that what else a table lacks can be found. It never gets into a
//! configuration.

use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{self, Deserializer, Visitor};
use serde::forward_to_deserialize_any;

use crate::error::Raised;

/// Zero, empty, or the first of the words that are allowed: whatever a type asks for.
pub(crate) struct Blank;

macro_rules! blanks {
    ($($method:ident $visit:ident($value:expr);)*) => {
        $(fn $method<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
            visitor.$visit($value)
        })*
    };
}

impl<'n> Deserializer<'n> for Blank {
    type Error = Raised;

    blanks! {
        deserialize_bool visit_bool(false);
        // One, because a type may forbid zero.
        deserialize_i8 visit_i8(1);
        deserialize_i16 visit_i16(1);
        deserialize_i32 visit_i32(1);
        deserialize_i64 visit_i64(1);
        deserialize_u8 visit_u8(1);
        deserialize_u16 visit_u16(1);
        deserialize_u32 visit_u32(1);
        deserialize_u64 visit_u64(1);
        deserialize_f32 visit_f32(1.0);
        deserialize_f64 visit_f64(1.0);
        deserialize_str visit_borrowed_str("");
        deserialize_string visit_borrowed_str("");
        deserialize_seq visit_seq(SeqDeserializer::<_, Raised>::new(std::iter::empty::<()>()));
        deserialize_map visit_map(MapDeserializer::<_, Raised>::new(std::iter::empty::<((), ())>()));
    }

    fn deserialize_any<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Raised> {
        visitor.visit_none()
    }

    fn deserialize_newtype_struct<V: Visitor<'n>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Raised> {
        visitor.visit_newtype_struct(self)
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
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Raised> {
        let first = words.first().copied().unwrap_or_default();
        let word: StrDeserializer<'_, Raised> = de::IntoDeserializer::into_deserializer(first);
        visitor.visit_enum(word)
    }

    forward_to_deserialize_any! {
        <V: Visitor<'n>>
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}
