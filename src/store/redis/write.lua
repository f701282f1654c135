#!lua
-- Stores several records in one command.
-- KEYS: their keys.  ARGV: for each its record, and when it ends in milliseconds since the Unix epoch.
-- Returns how many are stored: the first ones, up to one that Redis did not take.
for at = 1, #KEYS do
  local stored = redis.pcall('SET', KEYS[at], ARGV[2 * at - 1], 'PXAT', ARGV[2 * at])
  if stored.err then return at - 1 end
end
return #KEYS
