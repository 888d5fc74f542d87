//! Bytes in the OpenAPI document, whose form in JSON no derive can see.

use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, OneOfBuilder, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::{Blob, Content};

impl PartialSchema for Blob {
    fn schema() -> RefOr<Schema> {
        let encoded = ObjectBuilder::new()
            .property("base64", ObjectBuilder::new().schema_type(Type::String))
            .required("base64")
            .build();
        OneOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::String).build())
            .item(encoded)
            .description(Some(
                "Bytes: a string when they are UTF-8, an object with their base64 otherwise.",
            ))
            .into()
    }
}

impl ToSchema for Blob {}

impl PartialSchema for Content {
    fn schema() -> RefOr<Schema> {
        let format = SchemaFormat::KnownFormat(KnownFormat::Binary);
        ObjectBuilder::new().schema_type(Type::String).format(Some(format)).into()
    }
}

impl ToSchema for Content {}
