// The processes of a run: the suite's origin server, redis-server and aside, each on a free loopback port.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const here = path.dirname(fileURLToPath(import.meta.url))
const READY_WITHIN_MS = 15_000
const STOPPED_WITHIN_MS = 10_000

/** The processes of one run, with their output and files in a folder. */
export class Parts {
  #folder
  #running = []

  constructor (folder) {
    fs.rmSync(folder, { recursive: true, force: true })
    fs.mkdirSync(folder, { recursive: true })
    this.#folder = folder
  }

  /** The suite's origin server; resolves to `host:port`. */
  async origin () {
    const folder = this.#subfolder('origin')
    const server = path.join(here, 'node_modules/http-cache-tests/server/server.mjs')
    const settings = { npm_config_protocol: 'http', npm_config_port: '0', npm_config_pidfile: 'pid' }
    const part = this.#start('origin', process.execPath, [server], { cwd: folder, env: { ...process.env, ...settings } })
    const port = await until('the origin server says its port', part, () => {
      return part.output().match(/^Listening on http:.*:(\d+)\/$/m)?.[1]
    })
    return `127.0.0.1:${port}`
  }

  /** A redis-server without persistence; resolves to its URL. */
  async redis () {
    const port = await freePort()
    const args = ['--bind', '127.0.0.1', '--port', port, '--dir', this.#subfolder('redis'), '--save', '', '--appendonly', 'no']
    args.push('--maxmemory', '256mb', '--maxmemory-policy', 'volatile-lfu')
    const part = this.#start('redis', 'redis-server', args.map(String))
    await until('redis-server accepts connections', part, () => accepts(port))
    return `redis://127.0.0.1:${port}`
  }

  /** `aside serve` with aside.toml and what is appended to it; resolves to its URL. */
  async aside (binary, origin, appended) {
    const port = await freePort()
    const template = fs.readFileSync(path.join(here, 'aside.toml'), 'utf8')
    const config = template.replace('"LISTEN"', `"127.0.0.1:${port}"`).replace('http://ORIGIN', `http://${origin}`)
    const file = path.join(this.#folder, 'aside.toml')
    fs.writeFileSync(file, config + appended)
    const part = this.#start('aside', binary, ['serve', '--config', file])
    await until('aside accepts connections', part, () => accepts(port))
    return `http://127.0.0.1:${port}`
  }

  /** The parts that have ended though nobody stopped them. */
  ended () {
    return this.#running.filter(part => part.hasEnded()).map(part => part.name)
  }

  /** Stops all, the last started first. */
  async stop () {
    for (const part of this.#running.reverse()) {
      if (part.hasEnded()) continue
      const gone = once(part.child, 'exit')
      part.child.kill('SIGTERM')
      const killer = setTimeout(() => part.child.kill('SIGKILL'), STOPPED_WITHIN_MS)
      await gone
      clearTimeout(killer)
    }
    this.#running = []
  }

  #subfolder (name) {
    const folder = path.join(this.#folder, name)
    fs.mkdirSync(folder)
    return folder
  }

  #start (name, command, args, options = {}) {
    const log = path.join(this.#folder, `${name}.log`)
    const output = fs.openSync(log, 'w')
    const child = spawn(command, args, { ...options, stdio: ['ignore', output, output] })
    fs.closeSync(output)
    let failure
    child.on('error', error => { failure = error.message })
    const part = {
      name,
      child,
      output: () => fs.readFileSync(log, 'utf8') + (failure ?? ''),
      hasEnded: () => failure !== undefined || child.exitCode !== null || child.signalCode !== null
    }
    this.#running.push(part)
    return part
  }
}

/** Asks again until something is true, or the part has ended, or it has taken too long. */
async function until (what, part, ask) {
  const deadline = Date.now() + READY_WITHIN_MS
  while (Date.now() < deadline && !part.hasEnded()) {
    const answer = await ask()
    if (answer) return answer
    await new Promise(resolve => setTimeout(resolve, 20))
  }
  throw new Error(`not in time: ${what}\n${part.output()}`)
}

function accepts (port) {
  return new Promise(resolve => {
    const socket = net.connect(port, '127.0.0.1')
    socket.on('connect', () => { socket.destroy(); resolve(true) })
    socket.on('error', () => resolve(false))
  })
}

async function freePort () {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}
