#!lua flags=allow-oom
-- Records a purge: gives it the next number, writes its slots, tells everybody. Makes the ledger where there is none.
-- KEYS: the ledger.  ARGV: the channel, a floor for the number, the header of a new ledger, the positions (4 bytes each),
-- an epoch that is to be replaced or nothing.
-- Returns epoch, number before, number (8 bytes each, little-endian), as the message begins too.
local key, channel, floor, new, positions = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local time = redis.call('TIME')
local number = time[1] * 1000000 + time[2]
local header, before = redis.pcall('GETRANGE', key, 0, 31), 0
if type(header) ~= 'string' then header = '' end
local is_ours = #header == 32 and string.sub(header, 1, 8) == string.sub(new, 1, 8)
local epoch = string.sub(header, 9, 16)
local is_new = not is_ours or epoch == string.rep('\0', 8) or epoch == ARGV[5]
if is_new then
  redis.call('SET', key, new)
  header = new
elseif string.sub(header, 25, 32) ~= string.sub(new, 25, 32) then
  return redis.error_reply('SLOTS the ledger has ' .. string.format('%.0f', struct.unpack('<I8', header, 25)) .. ' slots')
else
  before = struct.unpack('<I8', header, 17)
end
if #positions == 0 and not is_new then return string.sub(header, 9, 16) .. struct.pack('<I8I8', before, before) end
number = math.max(number, before + 1, floor + 1)
local packed = struct.pack('<I8', number)
for at = 1, #positions, 4 do
  redis.call('SETRANGE', key, 64 + 8 * struct.unpack('<I4', positions, at), packed)
end
redis.call('SETRANGE', key, 16, packed)
local head = string.sub(header, 9, 16) .. struct.pack('<I8I8', before, number)
redis.call('PUBLISH', channel, head .. positions)
return head
