// Writes a file or the bytes at a URL to a file, decompressed by its suffix and verified,
// as balenaEtcher does.
const {multiWrite, sourceDestination} = require('etcher-sdk')

const [from, path] = process.argv.slice(2)
multiWrite.decompressThenFlash({
  source: from.startsWith('http:') ? new sourceDestination.Http({url: from, avoidRandomAccess: true}) : new sourceDestination.File({path: from}),
  destinations: [new sourceDestination.File({path, write: true})],
  onFail: () => {},
  onProgress: () => {},
  verify: true,
}).then(result => {
  if (result.failures.size > 0) throw [...result.failures.values()][0]
  process.exit(0)
}).catch(err => {
  console.error(err.message)
  process.exit(1)
})
