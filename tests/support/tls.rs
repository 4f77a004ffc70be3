//! Certificates made on the spot, and TLS clients.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::ssl::{
    ExtensionContext, HandshakeError, Ssl, SslContext, SslMethod, SslStream, SslVerifyMode,
    SslVersion,
};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

use super::broker::Broker;
use super::files::Files;
use super::mqtt::{ACCEPTED, Connect, PINGREQ};
use super::ports::{free_port, local};
use super::wait::SOON;

/// A certificate chain and its key, PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The chain, leaf first.
    pub cert: String,
    /// The key.
    pub key: String,
}

impl Identity {
    /// Both as they stand in a YAML flow mapping.
    pub fn yaml(&self) -> String {
        format!("cert: {:?}, key: {:?}", self.cert, self.key)
    }
}

/// A certificate authority.
pub struct Authority {
    cert: X509,
    key: PKey<Private>,
    /// Certificates between it and the root, itself first; empty for a root.
    chain: String,
    serial: Cell<u32>,
}

/// When a certificate is valid, in days from now.
#[derive(Clone, Copy)]
pub struct Days(pub i64, pub i64);

fn ec_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("P-256");
    PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key")
}

fn day(days: i64) -> Asn1Time {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = i64::try_from(now.expect("after 1970").as_secs()).expect("seconds");
    // A minute of grace on the near side.
    Asn1Time::from_unix(now + days * 86_400 + 60 * days.signum()).expect("a time")
}

fn builder(subject: &str, key: &PKey<Private>, serial: u32, days: Days) -> X509Builder {
    let mut name = X509NameBuilder::new().expect("name");
    name.append_entry_by_text("O", "mqtt-proxy tests")
        .expect("O");
    name.append_entry_by_text("CN", subject).expect("CN");
    let mut builder = X509::builder().expect("builder");
    builder.set_version(2).expect("v3");
    builder.set_subject_name(&name.build()).expect("subject");
    builder.set_pubkey(key).expect("key");
    let serial = BigNum::from_u32(serial).and_then(|n| n.to_asn1_integer());
    builder
        .set_serial_number(&serial.expect("serial"))
        .expect("serial");
    builder.set_not_before(&day(days.0)).expect("from");
    builder.set_not_after(&day(days.1)).expect("until");
    builder
}

fn pem(cert: &X509) -> String {
    String::from_utf8(cert.to_pem().expect("PEM")).expect("text")
}

impl Authority {
    /// A self-signed root.
    pub fn new(name: &str) -> Self {
        let key = ec_key();
        let mut builder = builder(name, &key, 1, Days(-1, 3650));
        let ca = BasicConstraints::new().critical().ca().build();
        builder.append_extension(ca.expect("CA")).expect("CA");
        let subject = {
            let mut name_builder = X509NameBuilder::new().expect("name");
            name_builder
                .append_entry_by_text("O", "mqtt-proxy tests")
                .expect("O");
            name_builder.append_entry_by_text("CN", name).expect("CN");
            name_builder.build()
        };
        builder.set_issuer_name(&subject).expect("issuer");
        builder.sign(&key, MessageDigest::sha256()).expect("sign");
        Self {
            cert: builder.build(),
            key,
            chain: String::new(),
            serial: Cell::new(1000),
        }
    }

    fn sign(&self, mut builder: X509Builder) -> X509 {
        builder
            .set_issuer_name(self.cert.subject_name())
            .expect("issuer");
        builder
            .sign(&self.key, MessageDigest::sha256())
            .expect("sign");
        builder.build()
    }

    fn next_serial(&self) -> u32 {
        self.serial.set(self.serial.get() + 1);
        self.serial.get()
    }

    /// An authority below this one.
    pub fn intermediate(&self, name: &str) -> Self {
        let key = ec_key();
        let mut builder = builder(name, &key, self.next_serial(), Days(-1, 3650));
        let ca = BasicConstraints::new().critical().ca().build();
        builder.append_extension(ca.expect("CA")).expect("CA");
        let cert = self.sign(builder);
        let chain = format!("{}{}", pem(&cert), self.chain);
        Self {
            cert,
            key,
            chain,
            serial: Cell::new(2000),
        }
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        pem(&self.cert)
    }

    /// A revocation list, PEM, made by the `openssl` program; `revoked` are certificates of this
    /// authority.
    pub fn revoke(&self, revoked: &[&Identity]) -> String {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let index: String = revoked
            .iter()
            .map(|identity| {
                let cert = X509::from_pem(identity.cert.as_bytes()).expect("PEM");
                let serial = cert.serial_number().to_bn().and_then(|n| n.to_hex_str());
                let serial = serial.expect("serial");
                format!("R\t400101000000Z\t200101000000Z\t{serial}\tunknown\t/CN=revoked\n")
            })
            .collect();
        let key = self.key.private_key_to_pem_pkcs8().expect("PEM");
        let config = format!(
            "[ca]\ndefault_ca = own\n[own]\ndatabase = {}\ndefault_md = sha256\n\
             default_crl_days = 30\n",
            path("index.txt")
        );
        let config = write(dir.path(), "ca.conf", &config);
        write(dir.path(), "index.txt", &index);
        let key = write(dir.path(), "ca.key", &String::from_utf8(key).expect("text"));
        let cert = write(dir.path(), "ca.pem", &self.pem());
        let args = [
            "ca", "-gencrl", "-config", &config, "-keyfile", &key, "-cert", &cert,
        ];
        let made = Command::new("openssl")
            .args(args)
            .output()
            .expect("openssl");
        let crl = String::from_utf8(made.stdout).expect("text");
        assert!(
            crl.contains("BEGIN X509 CRL"),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        crl
    }

    /// A certificate for these host names, an ECDSA one; the first is its common name.
    pub fn issue(&self, names: &[&str]) -> Identity {
        self.issue_for(names, Days(-1, 365), ec_key())
    }

    /// The same with an RSA key.
    pub fn issue_rsa(&self, names: &[&str]) -> Identity {
        let key = PKey::from_rsa(Rsa::generate(2048).expect("RSA")).expect("RSA");
        self.issue_for(names, Days(-1, 365), key)
    }

    /// The same for other days.
    pub fn issue_valid(&self, names: &[&str], days: Days) -> Identity {
        self.issue_for(names, days, ec_key())
    }

    fn issue_for(&self, names: &[&str], days: Days, key: PKey<Private>) -> Identity {
        let mut builder = builder(names[0], &key, self.next_serial(), days);
        let mut alternative = SubjectAlternativeName::new();
        for name in names {
            match name.parse::<std::net::IpAddr>() {
                Ok(_) => alternative.ip(name),
                Err(_) => alternative.dns(name),
            };
        }
        let context = builder.x509v3_context(Some(&self.cert), None);
        let extension = alternative.build(&context).expect("SAN");
        builder.append_extension(extension).expect("SAN");
        let cert = self.sign(builder);
        let key = key.private_key_to_pem_pkcs8().expect("PEM");
        Identity {
            cert: format!("{}{}", pem(&cert), self.chain),
            key: String::from_utf8(key).expect("text"),
        }
    }
}

/// How a TLS client connects.
#[derive(Clone)]
pub struct TlsClient {
    port: u16,
    name: Option<String>,
    identity: Option<Identity>,
    versions: (Option<SslVersion>, Option<SslVersion>),
    ciphers: Option<String>,
    suites: Option<String>,
    trust: Option<String>,
    more: usize,
}

/// The type of an extension that nobody knows.
const UNKNOWN_EXTENSION: u16 = 0xfa_fa;

/// An established TLS connection.
pub struct TlsTalk {
    /// The stream.
    pub stream: SslStream<TcpStream>,
}

impl TlsClient {
    /// To a port of 127.0.0.1, without a server name.
    pub fn to(port: u16) -> Self {
        Self {
            port,
            name: None,
            identity: None,
            versions: (None, None),
            ciphers: None,
            suites: None,
            trust: None,
            more: 0,
        }
    }

    /// With this server name.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// With a client certificate.
    pub fn identity(mut self, identity: &Identity) -> Self {
        self.identity = Some(identity.clone());
        self
    }

    /// With this version only.
    pub fn version(mut self, version: SslVersion) -> Self {
        self.versions = (Some(version), Some(version));
        self
    }

    /// With these ciphers of TLS 1.2 only.
    pub fn ciphers(mut self, list: &str) -> Self {
        self.ciphers = Some(list.to_owned());
        self.version(SslVersion::TLS1_2)
    }

    /// With this cipher suite of TLS 1.3 only.
    pub fn suites(mut self, name: &str) -> Self {
        self.suites = Some(name.to_owned());
        self.version(SslVersion::TLS1_3)
    }

    /// Verifies the server's certificate against this authority.
    pub fn trust(mut self, authority: &Authority) -> Self {
        self.trust = Some(authority.pem());
        self
    }

    /// With a ClientHello that is this much longer.
    pub fn longer_hello(mut self, bytes: usize) -> Self {
        self.more = bytes;
        self
    }

    /// What it shakes hands with.
    pub fn context(&self) -> SslContext {
        let mut builder = SslContext::builder(SslMethod::tls_client()).expect("context");
        builder.set_security_level(0);
        builder
            .set_min_proto_version(self.versions.0)
            .expect("version");
        builder
            .set_max_proto_version(self.versions.1)
            .expect("version");
        if let Some(ciphers) = &self.ciphers {
            builder.set_cipher_list(ciphers).expect("ciphers");
        }
        if let Some(name) = &self.suites {
            builder.set_ciphersuites(name).expect("suites");
        }
        if let Some(identity) = &self.identity {
            let mut chain = X509::stack_from_pem(identity.cert.as_bytes())
                .expect("PEM")
                .into_iter();
            builder
                .set_certificate(&chain.next().expect("a leaf"))
                .expect("certificate");
            chain.for_each(|cert| builder.add_extra_chain_cert(cert).expect("chain"));
            let key = PKey::private_key_from_pem(identity.key.as_bytes()).expect("key");
            builder.set_private_key(&key).expect("key");
        }
        if self.more > 0 {
            let extension = vec![7; self.more];
            builder
                .add_custom_ext(
                    UNKNOWN_EXTENSION,
                    ExtensionContext::CLIENT_HELLO,
                    move |_, _, _| Ok(Some(extension.clone())),
                    |_, _, _, _| Ok(()),
                )
                .expect("an extension");
        }
        match &self.trust {
            Some(pem) => {
                for cert in X509::stack_from_pem(pem.as_bytes()).expect("PEM") {
                    builder.cert_store_mut().add_cert(cert).expect("trust");
                }
                builder.set_verify(SslVerifyMode::PEER);
            }
            None => builder.set_verify(SslVerifyMode::NONE),
        }
        builder.build()
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// What OpenSSL says, alerts of the server among it.
    pub fn connect(&self) -> Result<TlsTalk, String> {
        let socket = TcpStream::connect_timeout(&local(self.port), SOON).expect("connect");
        socket.set_read_timeout(Some(SOON)).expect("timeout");
        socket.set_write_timeout(Some(SOON)).expect("timeout");
        self.over(socket)
    }

    /// Shakes hands on this connection.
    ///
    /// # Errors
    /// As [`TlsClient::connect`].
    pub fn over(&self, socket: TcpStream) -> Result<TlsTalk, String> {
        socket.set_nodelay(true).expect("TCP_NODELAY");
        match self.ssl().connect(socket) {
            Ok(stream) => Ok(TlsTalk { stream }),
            Err(HandshakeError::Failure(failed)) => Err(failed.error().to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The connection before its first byte.
    pub fn ssl(&self) -> Ssl {
        let mut ssl = Ssl::new(&self.context()).expect("SSL");
        if let Some(name) = &self.name {
            ssl.set_hostname(name).expect("name");
            ssl.param_mut().set_host(name).expect("name");
        }
        ssl
    }

    /// Shakes hands and is accepted by an MQTT broker.
    ///
    /// # Errors
    /// What OpenSSL says: in TLS 1.3 a refused client certificate shows only now.
    pub fn mqtt(&self, connect: &Connect) -> Result<TlsTalk, String> {
        let mut talk = self.connect()?;
        talk.send(&connect.build())
            .map_err(|error| error.to_string())?;
        let mut answer = [0; 4];
        talk.stream
            .read_exact(&mut answer)
            .map_err(|error| error.to_string())?;
        assert_eq!(answer, ACCEPTED, "CONNACK");
        Ok(talk)
    }

    /// The common name of the certificate that the server shows.
    ///
    /// # Errors
    /// As [`TlsClient::connect`].
    pub fn certificate(&self) -> Result<String, String> {
        self.connect().map(|talk| talk.certificate())
    }
}

impl TlsTalk {
    /// Sends all bytes.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads exactly these bytes.
    pub fn expect(&mut self, expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        self.stream.read_exact(&mut got).expect("the answer");
        assert_eq!(got, expected);
    }

    /// A ping that an echoing broker sends back.
    pub fn expect_alive(&mut self) {
        self.send(PINGREQ).expect("send");
        self.expect(PINGREQ);
    }

    /// The common name of the server's certificate.
    pub fn certificate(&self) -> String {
        let certificate = self.stream.ssl().peer_certificate().expect("a certificate");
        let names = certificate.subject_name().entries_by_nid(Nid::COMMONNAME);
        names.last().expect("CN").data().to_string().expect("text")
    }
}

/// Writes a text into a folder and gives its path.
pub fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("write");
    path.to_str().expect("text").to_owned()
}

/// A `config.yaml` with TLS listeners on these ports of 127.0.0.1; `apisix` is more text inside
/// `apisix:`, indented by two, `more` is more text at its end.
pub fn tls_config(ports: &[u16], apisix: &str, more: &str) -> String {
    let listen = |port: &u16| format!("      - {{addr: \"127.0.0.1:{port}\", tls: true}}\n");
    let listens: String = ports.iter().map(listen).collect();
    format!(
        "apisix:\n  proxy_mode: stream\n  stream_proxy:\n    tcp:\n{listens}{apisix}\
         deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n{more}"
    )
}

/// An `apisix.yaml` with one MQTT route for everybody to an upstream with this text inside, and
/// these `ssls`.
pub fn tls_routes(upstream: &str, ssls: &[String]) -> String {
    let ssls: String = ssls.iter().map(|ssl| format!("  - {ssl}\n")).collect();
    format!(
        "stream_routes:\n  - {{id: 1, upstream_id: 1, plugins: {{mqtt-proxy: \
         {{protocol_name: MQTT, protocol_level: 4}}}}}}\n\
         upstreams:\n  - {{id: 1, {upstream}}}\nssls:\n{ssls}#END\n"
    )
}

/// An upstream with this one node.
pub fn one_node(addr: std::net::SocketAddr) -> String {
    format!("type: chash, key: mqtt_client_id, nodes: {{\"{addr}\": 1}}")
}

/// An object of `ssls`; `more` begins with a comma.
pub fn ssl(id: &str, names: &str, identity: &Identity, more: &str) -> String {
    format!("{{id: {id}, snis: [{names}], {}{more}}}", identity.yaml())
}

/// A broker, and the files of a proxy before it whose only port serves TLS for `a.test`; `more` is
/// more text at the end of `config.yaml`.
pub fn before_a_broker(ca: &Authority, more: &str) -> (Broker, u16, Files) {
    let (broker, port) = (Broker::mqtt(), free_port());
    let ssls = [ssl("1", "a.test", &ca.issue(&["a.test"]), "")];
    let routes = tls_routes(&one_node(broker.addr()), &ssls);
    let files = Files::new(&tls_config(&[port], "", more), &routes);
    (broker, port, files)
}
