//! A method's types from `.proto` files, and its messages from and to JSON.

use std::path::{Path, PathBuf};

use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, ServiceDescriptor};
use serde_json::{Deserializer, Serializer, ser::PrettyFormatter};

use crate::exit::{Exit, Failure};

/// A unary method.
pub(super) struct Method {
    descriptor: MethodDescriptor,
}

impl Method {
    /// Finds a method in files; the service may be named without its package if that is unique.
    pub(super) fn find(files: &[PathBuf], include: &[PathBuf], service: &str, method: &str) -> Result<Self, Failure> {
        let pool = compile(files, include)?;
        let service = find_service(&pool, service)?;
        let Some(descriptor) = service.methods().find(|found| found.name() == method) else {
            let names: Vec<String> = service.methods().map(|m| m.name().to_owned()).collect();
            let text = format!("{} has no method {method}", service.full_name());
            return Err(Failure::usage(text).hint(format!("one of {}", names.join(", "))));
        };
        if descriptor.is_client_streaming() || descriptor.is_server_streaming() {
            let text = format!(
                "{} is a stream, and call is for methods with one request and one response",
                descriptor.full_name()
            );
            return Err(Failure::usage(text).hint("write a client with ucrpc-build for it"));
        }
        Ok(Self { descriptor })
    }

    /// The service's full name.
    pub(super) fn service(&self) -> String {
        self.descriptor.parent_service().full_name().to_owned()
    }

    pub(super) fn name(&self) -> String {
        self.descriptor.name().to_owned()
    }

    /// The request that a JSON text describes.
    pub(super) fn request(&self, json: &str) -> Result<DynamicMessage, Failure> {
        let input = self.descriptor.input();
        let wrong = |error: serde_json::Error| {
            Failure::usage(format!("the JSON is no {}: {error}", input.full_name())).hint(fields(&input))
        };
        let mut deserializer = Deserializer::from_str(json);
        let message = DynamicMessage::deserialize(input.clone(), &mut deserializer).map_err(wrong)?;
        deserializer.end().map_err(wrong)?;
        Ok(message)
    }

    /// A response as JSON.
    pub(super) fn response(&self, message: &[u8]) -> Result<String, Failure> {
        let output = self.descriptor.output();
        let name = output.full_name().to_owned();
        let message = DynamicMessage::decode(output, message).map_err(|error| {
            Failure::new(Exit::Failed, format!("the response is no {name}: {error}"))
                .hint("is the .proto file the server's? --raw shows the bytes")
        })?;
        let mut json = Vec::new();
        let mut serializer = Serializer::with_formatter(&mut json, PrettyFormatter::with_indent(b"  "));
        let options = prost_reflect::SerializeOptions::new().skip_default_fields(false);
        let done = message.serialize_with_options(&mut serializer, &options);
        done.map_err(|error| Failure::new(Exit::Failed, format!("the response cannot be printed as JSON: {error}")))?;
        Ok(String::from_utf8_lossy(&json).into_owned())
    }
}

/// What a message's JSON may hold.
fn fields(message: &MessageDescriptor) -> String {
    let field = |f: prost_reflect::FieldDescriptor| {
        let list = if f.is_list() { "repeated " } else { "" };
        format!("{} ({list}{:?})", f.json_name(), f.kind())
    };
    let fields: Vec<String> = message.fields().map(field).collect();
    match fields.is_empty() {
        true => format!("{} has no fields: {{}}", message.full_name()),
        false => format!("its fields: {}", fields.join(", ")),
    }
}

fn compile(files: &[PathBuf], include: &[PathBuf]) -> Result<DescriptorPool, Failure> {
    let wrong = |error: protox::Error| {
        // The error itself has the place only in its long form.
        let failure = Failure::usage(format!("{error:?}").trim().to_owned());
        match error.is_file_not_found() {
            true => failure.hint("-I DIR names the folder under which imports are found"),
            false => failure,
        }
    };
    let mut folders: Vec<PathBuf> = include.to_vec();
    if folders.is_empty() {
        let parent = |file: &PathBuf| match file.parent() {
            Some(folder) if folder != Path::new("") => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        folders = files.iter().map(parent).collect();
        folders.dedup();
    }
    let mut compiler = protox::Compiler::new(folders).map_err(wrong)?;
    for file in files {
        compiler.open_file(file).map_err(wrong)?;
    }
    Ok(compiler.descriptor_pool())
}

/// A service by its full name, or by its bare one if that is unique.
fn find_service(pool: &DescriptorPool, name: &str) -> Result<ServiceDescriptor, Failure> {
    if let Some(service) = pool.get_service_by_name(name) {
        return Ok(service);
    }
    let named: Vec<ServiceDescriptor> = pool.services().filter(|service| service.name() == name).collect();
    match named.as_slice() {
        [service] => Ok(service.clone()),
        [] => {
            let all: Vec<String> = pool.services().map(|service| service.full_name().to_owned()).collect();
            let hint = if all.is_empty() {
                "it declares no services".to_owned()
            } else {
                format!("one of {}", all.join(", "))
            };
            Err(Failure::usage(format!("the .proto file has no service {name}")).hint(hint))
        }
        several => {
            let all: Vec<&str> = several.iter().map(ServiceDescriptor::full_name).collect();
            Err(Failure::usage(format!("several services are called {name}"))
                .hint(format!("one of {}", all.join(", "))))
        }
    }
}
