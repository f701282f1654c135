// Holds aside to the HTTP cache tests: node run.mjs [memory] [redis] [--bin PATH] [--id TEST]
//
// Runs the whole suite once for each store (default: both) and compares with expected.json. With --id it runs one test
// and shows its requests and responses. What the processes said is left in target/conformance/.

import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { Worker } from 'node:worker_threads'
import { Parts } from './parts.mjs'
import { tests } from './tests.mjs'
import { counts, differences, flaws, isUnsettled, ownVerdict, verdicts } from './verdicts.mjs'

const here = path.dirname(fileURLToPath(import.meta.url))
const root = path.join(here, '../..')
const STORES = ['memory', 'redis']

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    bin: { type: 'string', default: path.join(root, 'target/profiled/aside') },
    id: { type: 'string' }
  }
})

/** The results of the tests with these ids (default: all), by id. */
function runSuite (base, ids, dump = false) {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL('./suite.mjs', import.meta.url), { workerData: { base, ids, dump } })
    worker.on('message', results => { resolve(results); worker.terminate() })
    worker.on('error', reject)
    worker.on('exit', code => reject(new Error(`the suite ended without results, exit code ${code}`)))
  })
}

/** All results; what was not settled the first time is run once more. */
async function runTwice (base) {
  const results = await runSuite(base)
  const again = [...tests.keys()].filter(id => isUnsettled(ownVerdict(results[id])))
  if (again.length > 0) {
    console.log(`  run again: ${again.map(id => `${id} (${results[id]})`).join(', ')}`)
    Object.assign(results, await runSuite(base, again))
  }
  return results
}

/** With memory.max_size 0 every hit of the Redis run comes from Redis, but for what Redis has not acknowledged yet. */
const redisTables = url => `\n[memory]\nmax_size = "0"\n\n[redis]\nurl = "${url}"\n`

/** Whether the hits came from the store that was to be tested. */
async function storeProblems (store, base) {
  const response = await fetch(`${base}/cache-stats`)
  if (response.status !== 200) return [`/cache-stats: status ${response.status}, expected 200`]
  const { totals, redis } = await response.json()
  const [used, unused] = store === 'redis' ? ['hits_redis', 'hits_memory'] : ['hits_memory', 'hits_redis']
  // A hit may come so soon after its response that the write to Redis is still under way.
  const tolerated = store === 'redis' ? totals[used] / 10 : 0
  const problems = []
  if (totals[used] === 0) problems.push(`/cache-stats: totals.${used} is 0`)
  if (totals[unused] > tolerated) problems.push(`/cache-stats: totals.${unused} is ${totals[unused]}`)
  if (store === 'redis' && redis?.state !== 'up') problems.push(`/cache-stats: redis.state is ${redis?.state}`)
  return problems
}

function printCounts (store, found) {
  const table = counts(tests, found)
  const total = row => Object.values(row).reduce((sum, count) => sum + count, 0)
  const rest = row => Object.entries(row).filter(([verdict]) => verdict !== 'pass').map(([verdict, n]) => `, ${n} ${verdict}`)
  for (const kind of ['required', 'optimal']) {
    const row = table[kind]
    console.log(`  ${store}: ${kind} ${row.pass ?? 0}/${total(row)}${rest(row).join('')}`)
  }
  const { pass = 0, fail = 0, ...others } = table.check
  console.log(`  ${store}: check ${pass} yes, ${fail} no${rest(others).join('')}`)
}

/** Every problem with one store. */
async function runStore (store, expected) {
  const parts = new Parts(path.join(root, 'target/conformance', store))
  const stop = () => parts.stop().then(() => process.exit(130))
  process.once('SIGINT', stop).once('SIGTERM', stop)
  try {
    const origin = await parts.origin()
    const appended = store === 'redis' ? redisTables(await parts.redis()) : ''
    const base = await parts.aside(path.resolve(options.bin), origin, appended)
    if (options.id !== undefined) {
      console.log(await runSuite(base, [options.id], true))
      return []
    }
    const results = await runTwice(base)
    const found = verdicts(tests, results)
    printCounts(store, found)
    const ended = parts.ended().map(name => `${name} has ended`)
    const misplaced = ended.length > 0 ? [] : await storeProblems(store, base)
    return [...ended, ...misplaced, ...differences(tests, found, expected, results)]
  } finally {
    process.removeListener('SIGINT', stop).removeListener('SIGTERM', stop)
    await parts.stop()
  }
}

const unknown = [
  ...positionals.filter(store => !STORES.includes(store)).map(store => `store "${store}": expected memory or redis`),
  ...(options.id === undefined || tests.has(options.id) ? [] : [`test "${options.id}" is not in the suite`])
]
const expected = JSON.parse(fs.readFileSync(path.join(here, 'expected.json'), 'utf8'))
const problems = [...unknown, ...flaws(tests, expected)]
if (problems.length === 0) {
  for (const store of positionals.length > 0 ? positionals : STORES) {
    console.log(`${store}: ${tests.size} tests`)
    problems.push(...(await runStore(store, expected)).map(problem => `${store}: ${problem}`))
  }
}
for (const problem of problems) console.error(problem)
if (problems.length > 0) {
  console.error(`${problems.length} difference(s); what the processes said is in target/conformance/`)
  process.exitCode = 1
}
