"""One story told with the paho client, in the MQTT version given: publish and subscribe with
QoS 0, 1 and 2, a retained message, and a persistent session that survives a reconnect.

usage: paho_session.py PORT VERSION SUBSCRIBER_ID PUBLISHER_ID READER_ID [CA [CERT KEY]]

With CA (a file), it connects over TLS to `localhost` and verifies who that is.
"""

import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PORT = int(sys.argv[1])
VERSION = {"3": mqtt.MQTTv31, "4": mqtt.MQTTv311, "5": mqtt.MQTTv5}[sys.argv[2]]
SUBSCRIBER, PUBLISHER, READER = sys.argv[3:6]
TLS_FILES = sys.argv[6:]
HOST = "localhost" if TLS_FILES else "127.0.0.1"
WAIT = 10
TOPIC = "paho/" + sys.argv[2]


class Session:
    """A client whose events are put into queues."""

    def __init__(self, client_id, keep):
        self.keep = keep
        self.messages = queue.Queue()
        self.events = queue.Queue()
        kind = {} if VERSION == mqtt.MQTTv5 else {"clean_session": not keep}
        self.client = mqtt.Client(client_id, protocol=VERSION, **kind)
        if TLS_FILES:
            self.client.tls_set(*TLS_FILES)
        self.client.on_connect = lambda c, u, flags, code, *rest: self.events.put(
            ("connected", int(code if isinstance(code, int) else code.value), flags)
        )
        self.client.on_subscribe = lambda *a: self.events.put(("subscribed", 0, {}))
        self.client.on_message = lambda c, u, message: self.messages.put(message)

    def connect(self, clean_start=True):
        more = {}
        if VERSION == mqtt.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            if self.keep:
                properties.SessionExpiryInterval = 3600
            more = {"clean_start": clean_start, "properties": properties}
        self.client.connect(HOST, PORT, 30, **more)
        self.client.loop_start()
        name, code, flags = self.events.get(timeout=WAIT)
        assert name == "connected" and code == 0, (name, code)
        return flags.get("session present", 0)

    def subscribe(self, topic):
        self.client.subscribe(topic, 2)
        assert self.events.get(timeout=WAIT)[0] == "subscribed"

    def publish(self, topic, payload, qos, retain=False):
        self.client.publish(topic, payload, qos, retain).wait_for_publish(WAIT)

    def expect(self, payload, qos, retain=False):
        message = self.messages.get(timeout=WAIT)
        got = (message.payload.decode(), message.qos, bool(message.retain))
        assert got == (payload, qos, retain), (got, payload, qos, retain)

    def disconnect(self):
        self.client.disconnect()
        self.client.loop_stop()


subscriber = Session(SUBSCRIBER, keep=True)
publisher = Session(PUBLISHER, keep=False)
subscriber.connect()
subscriber.subscribe(TOPIC + "/live")
publisher.connect()
for level in (0, 1, 2):
    publisher.publish(TOPIC + "/live", "qos %d" % level, level)
    subscriber.expect("qos %d" % level, level)

big = "x" * 200000
publisher.publish(TOPIC + "/live", big, 2)
subscriber.expect(big, 2)

publisher.publish(TOPIC + "/kept", "retained", 1, retain=True)
reader = Session(READER, keep=False)
reader.connect()
reader.subscribe(TOPIC + "/kept")
reader.expect("retained", 1, retain=True)
reader.disconnect()

subscriber.disconnect()
for number in range(5):
    publisher.publish(TOPIC + "/live", "while away %d" % number, 1)
present = subscriber.connect(clean_start=False)
if VERSION != mqtt.MQTTv31:
    assert present == 1, "the broker still has the session"
for number in range(5):
    subscriber.expect("while away %d" % number, 1)
subscriber.disconnect()
publisher.disconnect()
print("the whole story went well")
