//! The ssl object.

use super::common::{
    CREATE_TIME_FIELD, DESC_FIELD, HOST, ID_FIELD, LABELS_FIELD, SNIS, SSL_CERTIFICATE,
    SSL_PRIVATE_KEY, UPDATE_TIME_FIELD,
};
use super::{Field, Kind, List, Literal, Object, Rest, Rule, Text};

/// An item of `ssls`.
pub static SSL: Object = Object::strict(
    "Ssl",
    "Certificates for server names, or a client certificate for upstreams.",
    &[
        ID_FIELD,
        DESC_FIELD,
        LABELS_FIELD,
        CREATE_TIME_FIELD,
        UPDATE_TIME_FIELD,
        Field::new(
            "type",
            Kind::Choice(&["server", "client"]),
            "Whom it is shown to.",
        )
        .default(Literal::Text("server")),
        Field::new(
            "cert",
            SSL_CERTIFICATE,
            "Certificate chain, PEM, or $env://NAME.",
        )
        .required(),
        Field::new(
            "key",
            SSL_PRIVATE_KEY,
            "Its private key, PEM, or $env://NAME.",
        )
        .required()
        .secret(),
        Field::new(
            "certs",
            Kind::List(List::of(&SSL_CERTIFICATE)),
            "Further certificates.",
        ),
        Field::new(
            "keys",
            Kind::List(List::of(&SSL_PRIVATE_KEY)),
            "Their private keys.",
        )
        .secret(),
        Field::new(
            "sni",
            HOST,
            "Server name it is for; a leading * is a wildcard.",
        ),
        Field::new("snis", SNIS, "Server names it is for."),
        Field::new(
            "client",
            Kind::Object(&CLIENT),
            "Ask clients for a certificate.",
        ),
        Field::new("status", Kind::IntChoice(&[1, 0]), "1 = served, 0 = not.")
            .default(Literal::Int(1)),
        Field::new(
            "ssl_protocols",
            Kind::List(
                List::of(&Kind::Choice(&["TLSv1.1", "TLSv1.2", "TLSv1.3"]))
                    .at_most(3)
                    .unique(),
            ),
            "Versions for these names.",
        ),
    ],
)
.rules(&[Rule::Unless(
    "type",
    "client",
    &Rule::ExactlyOne(&[&["sni"], &["snis"]]),
)]);

static CLIENT: Object = Object::strict(
    "",
    "Ask clients for a certificate.",
    &[
        Field::new("ca", SSL_CERTIFICATE, "Who may sign it, PEM.").required(),
        Field::new(
            "crl",
            Kind::Text(Text::sized(64, 16 << 20).or_reference()),
            "Revocation lists of these authorities, PEM; every authority of a chain needs one.",
        ),
        Field::new(
            "depth",
            Kind::Int { min: 0, max: 100 },
            "Most intermediates, as OpenSSL counts.",
        )
        .default(Literal::Int(1)),
        Field::new(
            "skip_mtls_uri_regex",
            Kind::List(List::of(&Kind::TEXT).at_least(1).unique()),
            "HTTP only.",
        )
        .no_effect(),
    ],
)
.rest(Rest::Warn);
