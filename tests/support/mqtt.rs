//! MQTT packets as bytes, for all three protocol versions. Nothing is checked: wrong ones can be
//! built as well.

/// CONNACK "accepted" of MQTT 3.1 and 3.1.1.
pub const ACCEPTED: &[u8] = &[0x20, 0x02, 0x00, 0x00];
/// CONNACK "success" of MQTT 5.
pub const ACCEPTED_5: &[u8] = &[0x20, 0x03, 0x00, 0x00, 0x00];
/// PINGREQ.
pub const PINGREQ: &[u8] = &[0xC0, 0x00];

/// A CONNECT packet in the making.
#[derive(Clone, Debug)]
pub struct Connect {
    /// Protocol name.
    pub name: Vec<u8>,
    /// Protocol level.
    pub level: u8,
    /// Connect flags; those of will, user name and password are set by their builders.
    pub flags: u8,
    /// Keep alive in seconds.
    pub keep_alive: u16,
    /// Properties with their length in front; only packets of level 5 carry them.
    pub properties: Vec<u8>,
    /// Client id.
    pub client_id: Vec<u8>,
    /// Everything behind the client id.
    pub rest: Vec<u8>,
    /// First byte.
    pub first: u8,
}

impl Connect {
    /// A clean-session CONNECT of level 3, 4 or 5 with keep alive 60.
    pub fn level(level: u8, client_id: &str) -> Self {
        Self {
            name: if level == 3 {
                b"MQIsdp".to_vec()
            } else {
                b"MQTT".to_vec()
            },
            level,
            flags: 0x02,
            keep_alive: 60,
            properties: vec![0],
            client_id: client_id.as_bytes().to_vec(),
            rest: Vec::new(),
            first: 0x10,
        }
    }

    /// MQTT 3.1.
    pub fn v31(client_id: &str) -> Self {
        Self::level(3, client_id)
    }

    /// MQTT 3.1.1.
    pub fn v311(client_id: &str) -> Self {
        Self::level(4, client_id)
    }

    /// MQTT 5.
    pub fn v5(client_id: &str) -> Self {
        Self::level(5, client_id)
    }

    /// Keep alive in seconds.
    pub fn keep_alive(mut self, seconds: u16) -> Self {
        self.keep_alive = seconds;
        self
    }

    /// Client id as raw bytes.
    pub fn client_id_bytes(mut self, bytes: &[u8]) -> Self {
        self.client_id = bytes.to_vec();
        self
    }

    /// All connect flags at once.
    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// The first byte of the packet.
    pub fn first(mut self, byte: u8) -> Self {
        self.first = byte;
        self
    }

    /// Properties of MQTT 5, without their length.
    pub fn properties(mut self, bytes: &[u8]) -> Self {
        self.properties = varint(bytes.len());
        self.properties.extend_from_slice(bytes);
        self
    }

    /// A will with QoS 1; for MQTT 5 with no properties.
    pub fn will(mut self, topic: &str, payload: &[u8]) -> Self {
        self.flags |= 0x04 | 0x08;
        if self.level == 5 {
            self.rest.push(0);
        }
        self.rest.extend(field(topic.as_bytes()));
        self.rest.extend(field(payload));
        self
    }

    /// A user name.
    pub fn username(mut self, name: &str) -> Self {
        self.flags |= 0x80;
        self.rest.extend(field(name.as_bytes()));
        self
    }

    /// A password (behind the user name).
    pub fn password(mut self, password: &[u8]) -> Self {
        self.flags |= 0x40;
        self.rest.extend(field(password));
        self
    }

    /// More bytes at the end of the payload.
    pub fn rest(mut self, bytes: &[u8]) -> Self {
        self.rest.extend_from_slice(bytes);
        self
    }

    /// The body behind the fixed header.
    pub fn body(&self) -> Vec<u8> {
        let mut body = field(&self.name);
        body.push(self.level);
        body.push(self.flags);
        body.extend(self.keep_alive.to_be_bytes());
        if self.level == 5 {
            body.extend_from_slice(&self.properties);
        }
        body.extend(field(&self.client_id));
        body.extend_from_slice(&self.rest);
        body
    }

    /// The whole packet.
    pub fn build(&self) -> Vec<u8> {
        packet(self.first, &self.body())
    }
}

/// A packet with this first byte and body.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    packet.extend(varint(body.len()));
    packet.extend_from_slice(body);
    packet
}

/// A variable byte integer.
pub fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = (value % 128) as u8;
        value /= 128;
        bytes.push(if value > 0 { byte | 0x80 } else { byte });
        if value == 0 {
            return bytes;
        }
    }
}

/// A field with two bytes of length in front.
pub fn field(bytes: &[u8]) -> Vec<u8> {
    let mut field = (bytes.len() as u16).to_be_bytes().to_vec();
    field.extend_from_slice(bytes);
    field
}

/// PUBLISH QoS 0 of MQTT 3.1.1.
pub fn publish(topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = field(topic.as_bytes());
    body.extend_from_slice(payload);
    packet(0x30, &body)
}

/// PUBLISH QoS 1 of MQTT 3.1.1.
pub fn publish_qos1(id: u16, topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = field(topic.as_bytes());
    body.extend(id.to_be_bytes());
    body.extend_from_slice(payload);
    packet(0x32, &body)
}

/// SUBSCRIBE to one topic with QoS 1, MQTT 3.1.1.
pub fn subscribe(id: u16, topic: &str) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend(field(topic.as_bytes()));
    body.push(1);
    packet(0x82, &body)
}

/// DISCONNECT of MQTT 3.1.1.
pub fn disconnect() -> Vec<u8> {
    vec![0xE0, 0x00]
}

/// Bytes from hexadecimal text; blanks do not count.
pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| {
            let text = std::str::from_utf8(pair).expect("ASCII");
            u8::from_str_radix(text, 16).expect("a hexadecimal byte")
        })
        .collect()
}
