//! A builder of CONNECT packets for tests: valid ones by default, broken ones by hand.

/// A property of CONNECT or of a Will, as it goes on the wire.
#[derive(Clone, Debug)]
pub(super) enum Prop {
    Byte(u8, u8),
    Two(u8, u16),
    Four(u8, u32),
    Bytes(u8, Vec<u8>),
    User(String, String),
}

impl Prop {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Byte(id, value) => out.extend([*id, *value]),
            Self::Two(id, value) => {
                out.push(*id);
                out.extend(value.to_be_bytes());
            }
            Self::Four(id, value) => {
                out.push(*id);
                out.extend(value.to_be_bytes());
            }
            Self::Bytes(id, value) => {
                out.push(*id);
                counted(out, value);
            }
            Self::User(name, value) => {
                out.push(0x26);
                counted(out, name.as_bytes());
                counted(out, value.as_bytes());
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Will {
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) properties: Vec<Prop>,
    pub(super) topic: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) level: u8,
    pub(super) clean_start: bool,
    pub(super) keep_alive: u16,
    pub(super) properties: Vec<Prop>,
    pub(super) client_id: Vec<u8>,
    pub(super) will: Option<Will>,
    pub(super) username: Option<Vec<u8>>,
    pub(super) password: Option<Vec<u8>>,
}

impl Spec {
    /// A client `c` of this protocol level that says nothing more than it must.
    pub(super) fn minimal(level: u8) -> Self {
        Self {
            name: if level & 0x7f == 3 { "MQIsdp" } else { "MQTT" },
            level,
            clean_start: true,
            keep_alive: 60,
            properties: Vec::new(),
            client_id: b"c".to_vec(),
            will: None,
            username: None,
            password: None,
        }
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(super) fn is_v5(&self) -> bool {
        self.level & 0x7f == 5
    }

    pub(super) fn flags(&self) -> u8 {
        let mut flags = u8::from(self.clean_start) << 1;
        if let Some(will) = &self.will {
            flags |= 0x04 | (will.qos << 3) | (u8::from(will.retain) << 5);
        }
        flags | (u8::from(self.password.is_some()) << 6) | (u8::from(self.username.is_some()) << 7)
    }

    /// Everything behind the connect flags.
    pub(super) fn behind_flags(&self) -> Vec<u8> {
        let mut out = self.keep_alive.to_be_bytes().to_vec();
        if self.is_v5() {
            section(&mut out, &self.properties);
        }
        counted(&mut out, &self.client_id);
        if let Some(will) = &self.will {
            if self.is_v5() {
                section(&mut out, &will.properties);
            }
            counted(&mut out, &will.topic);
            counted(&mut out, &will.payload);
        }
        for field in [&self.username, &self.password].into_iter().flatten() {
            counted(&mut out, field);
        }
        out
    }

    /// The packet.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.bytes_with_flags(self.flags())
    }

    /// The packet with these connect flags instead of its own.
    pub(super) fn bytes_with_flags(&self, flags: u8) -> Vec<u8> {
        let mut out = Vec::new();
        counted(&mut out, self.name.as_bytes());
        out.extend([self.level, flags]);
        out.extend(self.behind_flags());
        packet(&out)
    }
}

/// CONNECT around what stands behind its fixed header.
pub(super) fn packet(behind: &[u8]) -> Vec<u8> {
    let mut out = vec![0x10];
    varint(&mut out, behind.len());
    out.extend(behind);
    out
}

/// Bytes behind two that count them.
pub(super) fn counted(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend(bytes);
}

fn section(out: &mut Vec<u8>, properties: &[Prop]) {
    let mut bytes = Vec::new();
    for property in properties {
        property.write(&mut bytes);
    }
    varint(out, bytes.len());
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// The bytes that a line of hexadecimal digits stands for.
pub(super) fn hex(line: &str) -> Vec<u8> {
    line.split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}
