-- What wrk asks for, and its figures in one line.
--   wrk … -s wrk.lua URL -- PREFIX KEYS
-- KEYS 1: PREFIX0 always; more: any of PREFIX0 and those after it; 0: another one each time. For one thread.
local prefix, keys
local asked = 0

local function head(key)
    return "GET " .. prefix .. key .. " HTTP/1.1\r\nHost: bench.test\r\n\r\n"
end

function init(args)
    prefix, keys = args[1], tonumber(args[2])
    math.randomseed(1)
    local first = head(0)
    if keys == 1 then
        request = function() return first end
    elseif keys > 1 then
        request = function() return head(math.random(0, keys - 1)) end
    else
        request = function()
            asked = asked + 1
            return head(asked)
        end
    end
end

function done(summary, latency)
    local failed = summary.errors
    print(string.format("FIGURES %d %d %d %d %d", summary.requests, summary.duration, latency:percentile(50),
        latency:percentile(99), failed.connect + failed.read + failed.write + failed.status + failed.timeout))
end
