//! The hash vectors of APISIX (resty.chash v0.05, checked against its C library and live sessions):
//! for each node set the points at the start of the ring and, for each key, the order in which the
//! nodes are tried when one after the other fails.

/// One node set with what APISIX makes of it.
pub struct Set {
    /// A name for messages.
    pub name: &'static str,
    /// Nodes and weights.
    pub nodes: &'static [(&'static str, u32)],
    /// Number of points of the ring.
    pub points: usize,
    /// The five lowest points and the index of the node that owns each.
    pub lowest: [(u32, usize); 5],
    /// Key, its CRC32, and the indices of the nodes in the order of attempts.
    pub orders: &'static [(&'static str, u32, &'static [usize])],
}

/// Node set V1.
pub const V1: Set = Set {
    name: "V1",
    nodes: &[
        ("127.0.0.1:1883", 1),
        ("127.0.0.1:1884", 1),
        ("127.0.0.1:1885", 1),
    ],
    points: 480,
    lowest: [
        (0x004c_4c6f, 1),
        (0x007a_d604, 1),
        (0x01aa_b24f, 2),
        (0x01f2_6f22, 0),
        (0x0262_bdbb, 0),
    ],
    orders: &[
        ("foo", 0x8c73_6521, &[0, 1, 2]),
        ("bar", 0x76ff_8caa, &[2, 0, 1]),
        ("f", 0x76d3_2be0, &[2, 0, 1]),
        ("g", 0x01d4_1b76, &[0, 2, 1]),
        ("clint-111", 0xc453_c2e4, &[1, 0, 2]),
        ("client-0", 0x878b_d2f0, &[0, 1, 2]),
        ("client-1", 0xf08c_e266, &[0, 1, 2]),
        ("client-2", 0x6985_b3dc, &[0, 1, 2]),
        ("client-3", 0x1e82_834a, &[2, 0, 1]),
        ("client-4", 0x80e6_16e9, &[2, 1, 0]),
        ("client-5", 0xf7e1_267f, &[1, 2, 0]),
        ("client-6", 0x6ee8_77c5, &[1, 0, 2]),
        ("client-7", 0x19ef_4753, &[1, 2, 0]),
        ("client-8", 0x8950_5ac2, &[2, 0, 1]),
        ("client-9", 0xfe57_6a54, &[1, 2, 0]),
        ("127.0.0.1", 0xd7b7_e7a8, &[2, 0, 1]),
        ("127.0.0.2", 0x4ebe_b612, &[0, 2, 1]),
        ("::1", 0xa2ca_6717, &[2, 0, 1]),
        ("mosq-ABCDEF", 0xdd21_5ca6, &[1, 2, 0]),
        ("aaaaaaaaaaaaaaaaaaaaaaa", 0x6e4c_f508, &[1, 0, 2]),
    ],
};

/// Node set V2.
pub const V2: Set = Set {
    name: "V2",
    nodes: &[
        ("127.0.0.1:1883", 1),
        ("127.0.0.1:1884", 2),
        ("127.0.0.1:1885", 3),
    ],
    points: 960,
    lowest: [
        (0x003b_4a7a, 2),
        (0x004c_4c6f, 1),
        (0x007a_d604, 1),
        (0x00c6_1524, 1),
        (0x00d2_fe1b, 2),
    ],
    orders: &[
        ("foo", 0x8c73_6521, &[0, 1, 2]),
        ("bar", 0x76ff_8caa, &[1, 2, 0]),
        ("f", 0x76d3_2be0, &[1, 2, 0]),
        ("g", 0x01d4_1b76, &[0, 2, 1]),
        ("clint-111", 0xc453_c2e4, &[1, 0, 2]),
        ("client-0", 0x878b_d2f0, &[2, 0, 1]),
        ("client-1", 0xf08c_e266, &[0, 2, 1]),
        ("client-2", 0x6985_b3dc, &[0, 1, 2]),
        ("client-3", 0x1e82_834a, &[2, 0, 1]),
        ("client-4", 0x80e6_16e9, &[2, 1, 0]),
        ("client-5", 0xf7e1_267f, &[1, 2, 0]),
        ("client-6", 0x6ee8_77c5, &[1, 2, 0]),
        ("client-7", 0x19ef_4753, &[1, 2, 0]),
        ("client-8", 0x8950_5ac2, &[2, 0, 1]),
        ("client-9", 0xfe57_6a54, &[1, 2, 0]),
        ("127.0.0.1", 0xd7b7_e7a8, &[2, 0, 1]),
        ("127.0.0.2", 0x4ebe_b612, &[2, 1, 0]),
        ("::1", 0xa2ca_6717, &[2, 0, 1]),
        ("mosq-ABCDEF", 0xdd21_5ca6, &[1, 2, 0]),
        ("aaaaaaaaaaaaaaaaaaaaaaa", 0x6e4c_f508, &[1, 0, 2]),
    ],
};

/// Node set V3.
pub const V3: Set = Set {
    name: "V3",
    nodes: &[
        ("10.0.0.1:1883", 1),
        ("10.0.0.2:1883", 1),
        ("10.0.0.3:1883", 1),
        ("10.0.0.4:1883", 1),
        ("10.0.0.5:1883", 1),
    ],
    points: 800,
    lowest: [
        (0x0005_36de, 1),
        (0x0048_f5aa, 2),
        (0x0060_a3bf, 3),
        (0x00ef_07dc, 3),
        (0x0116_34c9, 0),
    ],
    orders: &[
        ("foo", 0x8c73_6521, &[1, 4, 0, 3, 2]),
        ("bar", 0x76ff_8caa, &[4, 2, 3, 0, 1]),
        ("f", 0x76d3_2be0, &[4, 2, 3, 0, 1]),
        ("g", 0x01d4_1b76, &[0, 1, 4, 3, 2]),
        ("clint-111", 0xc453_c2e4, &[2, 4, 0, 3, 1]),
        ("client-0", 0x878b_d2f0, &[0, 4, 2, 3, 1]),
        ("client-1", 0xf08c_e266, &[3, 1, 4, 2, 0]),
        ("client-2", 0x6985_b3dc, &[1, 2, 0, 4, 3]),
        ("client-3", 0x1e82_834a, &[3, 2, 4, 1, 0]),
        ("client-4", 0x80e6_16e9, &[3, 0, 1, 4, 2]),
        ("client-5", 0xf7e1_267f, &[0, 2, 4, 3, 1]),
        ("client-6", 0x6ee8_77c5, &[2, 1, 3, 0, 4]),
        ("client-7", 0x19ef_4753, &[0, 1, 3, 4, 2]),
        ("client-8", 0x8950_5ac2, &[0, 3, 2, 1, 4]),
        ("client-9", 0xfe57_6a54, &[1, 2, 0, 3, 4]),
        ("127.0.0.1", 0xd7b7_e7a8, &[3, 0, 2, 4, 1]),
        ("127.0.0.2", 0x4ebe_b612, &[0, 1, 4, 2, 3]),
        ("::1", 0xa2ca_6717, &[3, 0, 2, 1, 4]),
        ("mosq-ABCDEF", 0xdd21_5ca6, &[2, 0, 1, 4, 3]),
        ("aaaaaaaaaaaaaaaaaaaaaaa", 0x6e4c_f508, &[4, 0, 2, 1, 3]),
    ],
};

/// Node set V4.
pub const V4: Set = Set {
    name: "V4",
    nodes: &[("[::1]:1883", 1), ("[::1]:1884", 1)],
    points: 320,
    lowest: [
        (0x01b9_ece5, 1),
        (0x030f_378f, 0),
        (0x038d_938c, 1),
        (0x03e4_4c96, 1),
        (0x0446_b987, 1),
    ],
    orders: &[
        ("foo", 0x8c73_6521, &[1, 0]),
        ("bar", 0x76ff_8caa, &[0, 1]),
        ("f", 0x76d3_2be0, &[0, 1]),
        ("g", 0x01d4_1b76, &[0, 1]),
        ("clint-111", 0xc453_c2e4, &[1, 0]),
        ("client-0", 0x878b_d2f0, &[0, 1]),
        ("client-1", 0xf08c_e266, &[0, 1]),
        ("client-2", 0x6985_b3dc, &[1, 0]),
        ("client-3", 0x1e82_834a, &[1, 0]),
        ("client-4", 0x80e6_16e9, &[0, 1]),
        ("client-5", 0xf7e1_267f, &[1, 0]),
        ("client-6", 0x6ee8_77c5, &[1, 0]),
        ("client-7", 0x19ef_4753, &[0, 1]),
        ("client-8", 0x8950_5ac2, &[1, 0]),
        ("client-9", 0xfe57_6a54, &[0, 1]),
        ("127.0.0.1", 0xd7b7_e7a8, &[0, 1]),
        ("127.0.0.2", 0x4ebe_b612, &[0, 1]),
        ("::1", 0xa2ca_6717, &[1, 0]),
        ("mosq-ABCDEF", 0xdd21_5ca6, &[1, 0]),
        ("aaaaaaaaaaaaaaaaaaaaaaa", 0x6e4c_f508, &[0, 1]),
    ],
};

/// Node set V5.
pub const V5: Set = Set {
    name: "V5",
    nodes: &[("0.0.0.0:1995", 1), ("127.0.0.1:1995", 1)],
    points: 320,
    lowest: [
        (0x002e_36fc, 0),
        (0x0036_9391, 1),
        (0x0097_226c, 0),
        (0x0158_3bae, 0),
        (0x029b_21e1, 1),
    ],
    orders: &[
        ("foo", 0x8c73_6521, &[0, 1]),
        ("bar", 0x76ff_8caa, &[0, 1]),
        ("f", 0x76d3_2be0, &[0, 1]),
        ("g", 0x01d4_1b76, &[1, 0]),
        ("clint-111", 0xc453_c2e4, &[1, 0]),
        ("client-0", 0x878b_d2f0, &[1, 0]),
        ("client-1", 0xf08c_e266, &[1, 0]),
        ("client-2", 0x6985_b3dc, &[0, 1]),
        ("client-3", 0x1e82_834a, &[1, 0]),
        ("client-4", 0x80e6_16e9, &[1, 0]),
        ("client-5", 0xf7e1_267f, &[0, 1]),
        ("client-6", 0x6ee8_77c5, &[0, 1]),
        ("client-7", 0x19ef_4753, &[0, 1]),
        ("client-8", 0x8950_5ac2, &[1, 0]),
        ("client-9", 0xfe57_6a54, &[0, 1]),
        ("127.0.0.1", 0xd7b7_e7a8, &[1, 0]),
        ("127.0.0.2", 0x4ebe_b612, &[0, 1]),
        ("::1", 0xa2ca_6717, &[1, 0]),
        ("mosq-ABCDEF", 0xdd21_5ca6, &[0, 1]),
        ("aaaaaaaaaaaaaaaaaaaaaaa", 0x6e4c_f508, &[0, 1]),
    ],
};

/// Node set V6.
pub const V6: Set = Set {
    name: "V6",
    nodes: &[
        ("127.0.0.1:1883", 100),
        ("127.0.0.1:1884", 0),
        ("127.0.0.1:1885", 100),
    ],
    points: 320,
    lowest: [
        (0x01aa_b24f, 2),
        (0x01f2_6f22, 0),
        (0x0262_bdbb, 0),
        (0x02cc_47ee, 2),
        (0x03a1_d876, 0),
    ],
    orders: &[
        ("foo", 0x8c73_6521, &[0, 2]),
        ("bar", 0x76ff_8caa, &[2, 0]),
        ("f", 0x76d3_2be0, &[2, 0]),
        ("g", 0x01d4_1b76, &[0, 2]),
        ("clint-111", 0xc453_c2e4, &[0, 2]),
        ("client-0", 0x878b_d2f0, &[0, 2]),
        ("client-1", 0xf08c_e266, &[0, 2]),
        ("client-2", 0x6985_b3dc, &[0, 2]),
        ("client-3", 0x1e82_834a, &[2, 0]),
        ("client-4", 0x80e6_16e9, &[2, 0]),
        ("client-5", 0xf7e1_267f, &[2, 0]),
        ("client-6", 0x6ee8_77c5, &[0, 2]),
        ("client-7", 0x19ef_4753, &[2, 0]),
        ("client-8", 0x8950_5ac2, &[2, 0]),
        ("client-9", 0xfe57_6a54, &[2, 0]),
        ("127.0.0.1", 0xd7b7_e7a8, &[2, 0]),
        ("127.0.0.2", 0x4ebe_b612, &[0, 2]),
        ("::1", 0xa2ca_6717, &[2, 0]),
        ("mosq-ABCDEF", 0xdd21_5ca6, &[2, 0]),
        ("aaaaaaaaaaaaaaaaaaaaaaa", 0x6e4c_f508, &[0, 2]),
    ],
};

/// All sets of IPv4 nodes: those where this proxy promises the very same ring.
pub const IPV4: [Set; 5] = [V1, V2, V3, V5, V6];
