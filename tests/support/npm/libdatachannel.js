// One peer of libdatachannel, for tests/integration/test_fast_interop.py:
//   libdatachannel.js offer|answer
// The other side's description comes as a JSON line on standard input, ours goes out as one, with its
// candidates. Who made the offer says when it has taken the answer. Both say when the channel is open and
// watched. Then each takes 300 messages, says their number and hash, and sends as many of its own.
"use strict";
const { createHash } = require("crypto");
const { createInterface } = require("readline");
const { PeerConnection } = require("node-datachannel");

const SIZES = [1, 2, 1171, 1172, 1173, 16_384, 65_535, 65_536, 100, 5_000];
const MESSAGES = 300;
const HIGH = 1 << 20; // bytes that are queued before a sender waits, and at which it goes on
const LOW = 1 << 18;

const role = process.argv[2];
const say = (fields) => process.stdout.write(JSON.stringify(fields) + "\n");
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const hear = async () => JSON.parse((await lines.next()).value);

function* messages(seed) {
  const stream = createHash("shake256", { outputLength: 1 << 20 }).update(Buffer.of(seed)).digest();
  for (let number = 0; number < MESSAGES; number++) {
    const size = SIZES[number % SIZES.length];
    const start = (number * 7919) % (stream.length - size);
    yield stream.subarray(start, start + size);
  }
}

async function send(channel) {
  channel.setBufferedAmountLowThreshold(LOW);
  for (const part of messages(1)) {
    while (channel.bufferedAmount() > HIGH) await new Promise((done) => channel.onBufferedAmountLow(done));
    channel.sendMessageBinary(part);
  }
}

function adopt(channel) {
  const whole = createHash("sha256");
  let count = 0;
  channel.onMessage((message) => {
    const part = Buffer.from(message);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(part.length);
    whole.update(length).update(part);
    if (++count === MESSAGES) say({ messages: count, digest: whole.digest("hex") });
  });
  return channel;
}

async function main() {
  const connection = new PeerConnection("peer", { iceServers: [] });
  const gathered = new Promise((done) =>
    connection.onGatheringStateChange((state) => state === "complete" && done()),
  );
  const opened = new Promise((done) => {
    if (role === "offer") {
      const channel = adopt(connection.createDataChannel("bulk"));
      channel.onOpen(() => done(channel));
    } else {
      connection.onDataChannel((channel) => done(adopt(channel)));
    }
  });
  if (role === "answer") connection.setRemoteDescription((await hear()).sdp, "offer");
  await gathered;
  say({ sdp: connection.localDescription().sdp });
  if (role === "offer") {
    connection.setRemoteDescription((await hear()).sdp, "answer");
    say({ answered: true });
  }
  const channel = await opened;
  say({ opened: true });
  await send(channel);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
