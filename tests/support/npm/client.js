// SOCKS clients of the npm package `socks`, as a program:
//   client.js connect PROXY_PORT HOST PORT TEXT    sends TEXT over TCP, prints what comes back
//   client.js associate PROXY_PORT HOST PORT TEXT  the same over UDP
"use strict";
const dgram = require("dgram");
const { SocksClient } = require("socks");

const [command, proxyPort, host, port, text] = process.argv.slice(2);
const options = {
  proxy: { host: "127.0.0.1", port: Number(proxyPort), type: 5 },
  destination: { host, port: Number(port) },
  timeout: 20000,
};

function fail(error) {
  console.error(error.message);
  process.exit(1);
}

if (command === "connect") {
  SocksClient.createConnection({ ...options, command }).then(({ socket }) => {
    let received = "";
    socket.on("data", (data) => (received += data));
    socket.on("end", () => console.log(received));
    socket.on("error", fail);
    socket.end(text);
  }, fail);
} else {
  const udp = dgram.createSocket("udp4");
  const client = new SocksClient({ ...options, command, destination: { host: "0.0.0.0", port: 0 } });
  client.on("error", fail);
  client.on("established", ({ remoteHost, socket }) => {
    const packet = SocksClient.createUDPFrame({
      remoteHost: { host, port: Number(port) },
      data: Buffer.from(text),
    });
    udp.on("message", (message) => {
      const frame = SocksClient.parseUDPFrame(message);
      console.log(`${frame.remoteHost.host} ${frame.remoteHost.port} ${frame.data}`);
      udp.close();
      socket.destroy();
    });
    udp.send(packet, remoteHost.port, remoteHost.host);
  });
  client.connect();
}
