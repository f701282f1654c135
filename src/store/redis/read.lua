#!lua flags=no-writes
-- Reads several keys in one command.
-- KEYS: the keys.  ARGV: the longest value that is wanted.
-- Returns for each key what it holds, null where that is no string; 1 where it is longer: to be asked for alone.
local values, longest = redis.call('MGET', unpack(KEYS)), tonumber(ARGV[1])
for at = 1, #KEYS do
  if values[at] and #values[at] > longest then values[at] = 1 end
end
return values
