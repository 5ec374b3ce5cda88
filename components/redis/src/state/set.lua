-- KEYS: the key. ARGV: expected version or '', '1' for first-write, life time in ms or '', value.
-- Gives 1 when it was written and 0 on a conflict.
local key = KEYS[1]
local old = redis.pcall('HMGET', key, 'version', 'first-write')
local other, past = false, 0
if old.err then
  if not string.find(old.err, 'WRONGTYPE', 1, true) then return old end
  -- A document of the JSON module has a version, too; its next one goes on from there.
  local version = redis.pcall('JSON.GET', key, '.version')
  if type(version) ~= 'string' or not tonumber(version) then version = false end
  other, past, old = true, tonumber(version or '0'), { version, false }
end
local version = old[1]
if version and version ~= '' then
  if ARGV[1] ~= '' then
    if ARGV[1] ~= version then return 0 end
  elseif ARGV[2] == '1' and old[2] then
    return 0
  end
end
if other then redis.call('DEL', key) end
-- First, because it alone can refuse: a version that is no integer.
redis.call('HINCRBY', key, 'version', string.format('%.0f', past + 1))
if ARGV[2] == '1' then
  redis.call('HSET', key, 'data', ARGV[4], 'first-write', '0')
else
  redis.call('HSET', key, 'data', ARGV[4])
  if old[2] then redis.call('HDEL', key, 'first-write') end
end
if ARGV[3] ~= '' then redis.call('PEXPIRE', key, ARGV[3]) else redis.call('PERSIST', key) end
return 1
