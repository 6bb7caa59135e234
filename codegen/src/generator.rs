//! Writes the code of a service: client, trait, server wrapper. The result is formatted by prost-build.

use std::fmt::Write as _;

use prost_build::{Method, Service, ServiceGenerator};

/// Generates the code of services.
#[derive(Debug)]
pub(crate) struct Generator {
    runtime: String,
    client: bool,
    server: bool,
}

/// Methods that clients have already.
const TAKEN_IN_CLIENT: [&str; 2] = ["new", "caller"];

impl Generator {
    pub(crate) fn new(runtime: &str, client: bool, server: bool) -> Self {
        Self { runtime: runtime.to_owned(), client, server }
    }
}

impl ServiceGenerator for Generator {
    fn generate(&mut self, service: Service, buf: &mut String) {
        if self.client {
            self.write_client(&service, buf);
        }
        if self.server {
            self.write_server(&service, buf);
        }
    }
}

/// `write!` to a `String` cannot fail.
macro_rules! put {
    ($buf:expr, $($arg:tt)*) => {
        let _ = writeln!($buf, $($arg)*);
    };
}

/// Lints that generated code is not written for.
const ALLOW: &str = "    #![allow(unused_imports, unused_variables, unused_mut, dead_code, missing_docs, unreachable_pub, clippy::all)]";

impl Generator {
    fn write_client(&self, service: &Service, buf: &mut String) {
        let (name, module, full) = (&service.name, module_name(service), full_name(service));
        let runtime = &self.runtime;
        put!(buf, "/// Client of the service `{full}`.");
        put!(buf, "pub mod {module}_client {{");
        put!(buf, "{ALLOW}");
        put!(buf, "    use {runtime} as rpc;");
        write_docs(
            buf,
            &service.comments,
            1,
            &format!("Client of the service `{full}`, over a channel, or a stand-in `C` for one."),
        );
        put!(buf, "    #[derive(Debug, Clone)]");
        put!(buf, "    pub struct {name}Client<C = rpc::Channel> {{");
        put!(buf, "        caller: C,");
        put!(buf, "    }}");
        put!(buf, "    impl<C: rpc::client::RawCaller> {name}Client<C> {{");
        put!(buf, "        /// A client whose calls go over `caller`.");
        put!(buf, "        pub fn new(caller: C) -> Self {{ Self {{ caller }} }}");
        put!(buf, "        /// What the calls go over.");
        put!(buf, "        pub fn caller(&self) -> &C {{ &self.caller }}");
        for method in &service.methods {
            let (input, output) = types(method);
            let rust_name = client_method_name(&method.name);
            let proto_name = &method.proto_name;
            let mut last = format!("Calls `{full}/{proto_name}`.");
            if is_streaming(method) {
                last.push_str(" Opens a stream: end the call with `open_stream`.");
            }
            write_docs(buf, &method.comments, 2, &last);
            put!(
                buf,
                "        pub fn {rust_name}(&self, request: {input}) -> rpc::client::Call<C, {input}, {output}> {{"
            );
            put!(buf, "            rpc::client::Call::new(");
            put!(buf, "                self.caller.clone(),");
            put!(buf, "                rpc::call::MethodName::from_static(\"{full}\", \"{proto_name}\"),");
            put!(buf, "                request,");
            put!(buf, "            )");
            put!(buf, "        }}");
        }
        put!(buf, "    }}");
        put!(buf, "}}");
    }

    fn write_server(&self, service: &Service, buf: &mut String) {
        let (name, module, full) = (&service.name, module_name(service), full_name(service));
        let runtime = &self.runtime;
        put!(buf, "/// Server side of the service `{full}`.");
        put!(buf, "pub mod {module}_server {{");
        put!(buf, "{ALLOW}");
        put!(buf, "    use {runtime} as rpc;");
        write_descriptor(service, &full, buf);
        write_trait(service, &full, buf);
        put!(buf, "    /// Serves `T` as `{full}`. Clones share the same `T`.");
        put!(buf, "    #[derive(Debug)]");
        put!(buf, "    pub struct {name}Server<T> {{ inner: ::std::sync::Arc<T> }}");
        put!(buf, "    impl<T: {name}> {name}Server<T> {{");
        put!(buf, "        /// Serves `inner`.");
        put!(buf, "        pub fn new(inner: T) -> Self {{ Self::from_arc(::std::sync::Arc::new(inner)) }}");
        put!(buf, "        /// Serves `inner`, which others may use, too.");
        put!(buf, "        pub fn from_arc(inner: ::std::sync::Arc<T>) -> Self {{ Self {{ inner }} }}");
        put!(buf, "    }}");
        put!(buf, "    impl<T> Clone for {name}Server<T> {{");
        put!(buf, "        fn clone(&self) -> Self {{ Self {{ inner: ::std::sync::Arc::clone(&self.inner) }} }}");
        put!(buf, "    }}");
        put!(buf, "    impl<T: {name}> rpc::Service for {name}Server<T> {{");
        put!(buf, "        fn descriptor(&self) -> &'static rpc::service::ServiceDescriptor {{ &DESCRIPTOR }}");
        put!(buf, "        fn call(");
        put!(buf, "            &self,");
        put!(buf, "            method: rpc::service::MethodId,");
        put!(buf, "            mut context: rpc::CallContext,");
        put!(buf, "            message: rpc::__private::Bytes,");
        put!(buf, "        ) -> rpc::service::ReplyFuture {{");
        put!(buf, "            let inner = ::std::sync::Arc::clone(&self.inner);");
        put!(buf, "            match method.0 {{");
        for (at, method) in service.methods.iter().enumerate() {
            write_arm(at, method, name, buf);
        }
        put!(buf, "                _ => rpc::service::no_such_method(context),");
        put!(buf, "            }}");
        put!(buf, "        }}");
        put!(buf, "    }}");
        put!(buf, "}}");
    }
}

fn write_descriptor(service: &Service, full: &str, buf: &mut String) {
    put!(buf, "    /// The names of `{full}`.");
    put!(buf, "    pub const DESCRIPTOR: rpc::service::ServiceDescriptor = rpc::service::ServiceDescriptor {{");
    put!(buf, "        name: \"{full}\",");
    put!(buf, "        methods: &[");
    for method in &service.methods {
        put!(buf, "            rpc::service::MethodDescriptor {{");
        put!(buf, "                name: \"{}\",", method.proto_name);
        put!(buf, "                client_streaming: {},", method.client_streaming);
        put!(buf, "                server_streaming: {},", method.server_streaming);
        put!(buf, "            }},");
    }
    put!(buf, "        ],");
    put!(buf, "    }};");
}

fn write_trait(service: &Service, full: &str, buf: &mut String) {
    write_docs(buf, &service.comments, 1, &format!("To be implemented by who serves `{full}`."));
    put!(buf, "    pub trait {}: Send + Sync + 'static {{", service.name);
    for method in &service.methods {
        let (input, output) = types(method);
        let mut last = format!("Serves `{full}/{}`.", method.proto_name);
        if is_streaming(method) {
            last.push_str(" `stream` is the caller's half of a stream; drop it to refuse it.");
        }
        write_docs(buf, &method.comments, 2, &last);
        put!(buf, "        fn {}(", method.name);
        put!(buf, "            &self,");
        put!(buf, "            context: &mut rpc::CallContext,");
        put!(buf, "            request: {input},");
        if is_streaming(method) {
            put!(buf, "            stream: rpc::service::StreamOffer<{input}, {output}>,");
        }
        put!(buf, "        ) -> impl Future<Output = Result<{output}, rpc::Status>> + Send;");
    }
    put!(buf, "    }}");
}

fn write_arm(at: usize, method: &Method, service: &str, buf: &mut String) {
    put!(buf, "                {at} => Box::pin(async move {{");
    put!(buf, "                    let result = async {{");
    put!(buf, "                        let request = rpc::codec::decode_request_message(message)?;");
    let stream = if is_streaming(method) {
        put!(buf, "                        let stream = rpc::service::StreamOffer::from_context(&context)?;");
        ", stream"
    } else {
        ""
    };
    let call = format!("{service}::{}(&*inner, &mut context, request{stream})", method.name);
    put!(buf, "                        {call}.await.map(|response| rpc::wire::MessageBuf::encode(&response, 0))");
    put!(buf, "                    }}.await;");
    put!(buf, "                    rpc::call::Reply {{ result, context }}");
    put!(buf, "                }}),");
}

/// The comments of the `.proto` file, then a line of ours, as doc comments.
fn write_docs(buf: &mut String, comments: &prost_build::Comments, indent: u8, last: &str) {
    let mut comments = comments.clone();
    // Comments that stand apart belong to nothing.
    comments.leading_detached.clear();
    let pad = "    ".repeat(indent.into());
    if !(comments.leading.is_empty() && comments.trailing.is_empty()) {
        comments.append_with_indent(indent, buf);
        put!(buf, "{pad}///");
    }
    put!(buf, "{pad}/// {last}");
}

fn full_name(service: &Service) -> String {
    if service.package.is_empty() {
        service.proto_name.clone()
    } else {
        format!("{}.{}", service.package, service.proto_name)
    }
}

/// The service's name in the form of a module's, as prost names its own.
fn module_name(service: &Service) -> String {
    let mut out = String::new();
    let mut previous: Option<char> = None;
    let mut letters = service.name.trim_start_matches("r#").chars().peekable();
    while let Some(letter) = letters.next() {
        let after_lower = previous.is_some_and(|c| c.is_lowercase() || c.is_ascii_digit());
        let ends_acronym =
            previous.is_some_and(char::is_uppercase) && letters.peek().is_some_and(|next| next.is_lowercase());
        if letter.is_uppercase() && (after_lower || ends_acronym) {
            out.push('_');
        }
        out.extend(letter.to_lowercase());
        previous = Some(letter);
    }
    out
}

fn client_method_name(name: &str) -> String {
    if TAKEN_IN_CLIENT.contains(&name) { format!("{name}_") } else { name.to_owned() }
}

fn is_streaming(method: &Method) -> bool {
    method.client_streaming || method.server_streaming
}

/// Input and output type, as seen from inside the generated module.
fn types(method: &Method) -> (String, String) {
    (from_inside(&method.input_type), from_inside(&method.output_type))
}

fn from_inside(path: &str) -> String {
    if path == "()" || path.starts_with("::") || path.starts_with("crate::") {
        path.to_owned()
    } else {
        format!("super::{path}")
    }
}
