//! What a TLS handshake established, as variables.

use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::ssl::SslRef;
use openssl::x509::X509Ref;

use crate::ffi::openssl as ffi;

/// What is known about a client's TLS connection. Values have nginx's form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsVariables {
    /// `ssl_server_name`: the client's own, or `fallback_sni` of one that sent none.
    pub server_name: Option<String>,
    /// `ssl_protocol`, such as `TLSv1.3`; `None` where TLS is passed through.
    pub protocol: Option<&'static str>,
    /// `ssl_cipher`, by OpenSSL's name.
    pub cipher: Option<&'static str>,
    /// Whether the session was resumed.
    pub reused: bool,
    /// The client's certificate, which was verified.
    pub client: Option<ClientCertificate>,
}

/// A client certificate that was verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// `ssl_client_s_dn`: the subject as RFC 2253 writes it.
    pub subject: String,
    /// `ssl_client_cn`: the last common name of the subject.
    pub common_name: Option<String>,
    /// `ssl_client_serial`: hexadecimal, capital letters.
    pub serial: String,
    /// `ssl_client_fingerprint`: SHA-1 of the certificate, hexadecimal, small letters.
    pub fingerprint: String,
}

impl TlsVariables {
    /// What an established connection of a client says.
    pub fn of(ssl: &SslRef, server_name: Option<String>) -> Self {
        TlsVariables {
            server_name,
            protocol: Some(ssl.version_str()),
            cipher: ssl.current_cipher().map(|cipher| cipher.name()),
            reused: ssl.session_reused(),
            client: ssl
                .peer_certificate()
                .map(|certificate| ClientCertificate::of(&certificate)),
        }
    }

    /// The value of a variable whose name begins with `ssl_`.
    pub fn get(&self, name: &str) -> Option<&str> {
        let client = self.client.as_ref();
        match name {
            "ssl_server_name" => self.server_name.as_deref(),
            "ssl_protocol" => self.protocol,
            "ssl_cipher" => self.cipher,
            "ssl_client_s_dn" => client.map(|client| client.subject.as_str()),
            "ssl_client_cn" => client?.common_name.as_deref(),
            "ssl_client_serial" => client.map(|client| client.serial.as_str()),
            "ssl_client_fingerprint" => client.map(|client| client.fingerprint.as_str()),
            _ => None,
        }
    }
}

impl ClientCertificate {
    /// Describes a certificate. What cannot be read of it is empty.
    pub fn of(certificate: &X509Ref) -> Self {
        let subject = certificate.subject_name();
        let common_name = subject.entries_by_nid(Nid::COMMONNAME).last();
        let serial = certificate
            .serial_number()
            .to_bn()
            .and_then(|n| n.to_hex_str());
        let digest = certificate.digest(MessageDigest::sha1());
        ClientCertificate {
            subject: ffi::rfc2253(subject).unwrap_or_default(),
            common_name: common_name.and_then(|name| name.data().to_string().ok()),
            serial: serial.map(|text| text.to_string()).unwrap_or_default(),
            fingerprint: digest
                .map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect())
                .unwrap_or_default(),
        }
    }
}
